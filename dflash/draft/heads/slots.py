"""What a draft says of the slots behind each row's anchor, read left to right.

Stands between a draft session and a verifier: the verifier says how a token is chosen from logits, the slots say from
which. Without a head all slots are read at once.

Letters: B rows, D slots, V vocabulary, W paths of a tree at one depth, G size of a head's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dflash.argmax import argmax
from dflash.draft.heads.head import Embed, Head

Work = Callable[["Slots"], tuple[Tensor, ...]]  # of tensors only, and equal to every other that does the same
Choose = Callable[[Tensor, slice], Tensor]  # (logits [B, n, V], which slots these are) -> tokens, long [B, n]


def likeliest(logits_BNV: Tensor, part: slice) -> Tensor:
    """The greedy choice, known by its name: heads may have a shorter way to its walk, and recordings are made of it."""
    return argmax(logits_BNV)


@dataclass(frozen=True)
class Walk:
    """A chain of proposals. tokens_BD: long. logits_BDV: what each token was chosen from, given those before it; of
    the candidates alone, where a head has gone its shorter way.

    confidence_BD: the head's own probability that the target keeps the token, if those before it are kept; or None.
    counts_B: long, how many leading tokens each row really proposes; None: all.
    """

    tokens_BD: Tensor
    logits_BDV: Tensor
    confidence_BD: Tensor | None = None
    counts_B: Tensor | None = None


@dataclass(frozen=True)
class Slots:
    """D slots that speak for themselves. logits_BDV: the draft's."""

    logits_BDV: Tensor

    @property
    def num_slots(self) -> int:
        return self.logits_BDV.shape[1]

    def drawn_up(self) -> Slots:
        """Themselves: they have their logits."""
        return self

    def compute(self, work: Work) -> tuple[Tensor, ...]:
        """``work`` on these slots; those that are recorded make a recording of it."""
        return work(self)

    def walk(self, choose: Choose) -> Walk:
        """The chain that ``choose`` takes, left to right."""
        return Walk(choose(self.logits_BDV, slice(0, self.num_slots)), self.logits_BDV)


@dataclass(frozen=True)
class LinkedSlots(Slots):
    """Slots that a head links: each depends on the tokens before it. hidden_BDH: the slots' states; anchor_B: long."""

    head: Head
    hidden_BDH: Tensor
    anchor_B: Tensor
    embed: Embed

    def walk(self, choose: Choose) -> Walk:
        if choose is likeliest:
            shorter = self.head.greedy_walk(self.logits_BDV, self.hidden_BDH, self.anchor_B)
            if shorter is not None:
                return Walk(*shorter)
        memory, previous_B = None, self.anchor_B
        tokens, logits, confidences = [], [], []
        for slot in range(self.num_slots):
            memory = self.head.follow(memory, previous_B, self.embed)
            logits.append(self.head.correct(self.logits_BDV[:, slot], self.hidden_BDH[:, slot], memory))
            confidences.append(self.head.confidence(self.hidden_BDH[:, slot], memory))
            tokens.append(choose(logits[-1][:, None], slice(slot, slot + 1)))
            previous_B = tokens[-1][:, 0]
        told = confidences[0] is not None
        confidence_BD = torch.stack(confidences, 1).sigmoid() if told else None
        return Walk(torch.cat(tokens, 1), torch.stack(logits, 1), confidence_BD)

    def begin(self) -> Tensor:
        """[B, 1, G]: the head's memory at the first slot, of the one path there is."""
        return self.head.follow(None, self.anchor_B[:, None], self.embed)

    def logits_at(self, slot: int, memory_BWG: Tensor) -> Tensor:
        """[B, W, V]: the slot's logits at the end of each of W paths."""
        W = memory_BWG.shape[1]
        base, hidden = (x[:, slot, None].expand(-1, W, -1) for x in (self.logits_BDV, self.hidden_BDH))
        return self.head.correct(base, hidden, memory_BWG)

    def follow(self, memory_BWG: Tensor, path_BN: Tensor, tokens_BN: Tensor) -> Tensor:
        """[B, N, G]: the memory one slot on, of N paths that extend path ``path_BN`` by ``tokens_BN``."""
        index = path_BN[..., None].expand(-1, -1, memory_BWG.shape[-1])
        return self.head.follow(memory_BWG.gather(1, index), tokens_BN, self.embed)


def make_slots(head: Head | None, logits_BDV: Tensor, hidden_BDH: Tensor, anchor_B: Tensor, embed: Embed) -> Slots:
    """The slots of one draft pass; linked where the draft has a head and there is a slot at all."""
    if head is None or logits_BDV.shape[1] == 0:
        return Slots(logits_BDV)
    return LinkedSlots(logits_BDV, head, hidden_BDH, anchor_B, embed)
