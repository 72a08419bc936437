"""A block draft's part of a round as recordings: from the anchors to what a verifier makes of the slots.

A small draft's round is half interpreter, so the fewer and longer its recorded passes are, the better. What is wanted
is known when a verifier asks: the likeliest chain, or a tree of so many nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dflash.draft.draft import Draft
from dflash.draft.heads.slots import Choose, Slots, Walk, Work, likeliest, make_slots
from dflash.draft.session import propose, recorded_extension
from dflash.replay import Pass, Replay
from dflash.target.target import Target


class Recordings:
    """Of a draft over a target. All but ``extend`` take (anchor_B, noise_D, what ``DraftSession.context`` gives).

    extend: of a session's contexts, see ``DraftSession``. slots: gives (logits_BDV, hidden_BDH). works: what verifiers
    do with slots, each together with the pass that drafts them.
    """

    def __init__(self, draft: Draft, target: Target):
        self.draft, self.target = draft, target
        self.extend = recorded_extension(draft, target.recorder)
        self.slots = self._replay(self._drafted)
        self.works: dict[Work, Replay] = {}

    def compute(self, work: Work, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What ``work`` makes of the slots."""
        if work not in self.works:
            self.works[work] = self._replay(lambda *tensors: work(self.made(tensors[0], *self._drafted(*tensors))))
        return self.works[work](*given)

    def made(self, anchor_B: Tensor, logits_BDV: Tensor, hidden_BDH: Tensor) -> Slots:
        return make_slots(self.draft.head, logits_BDV, hidden_BDH, anchor_B, self.target.embed)

    def _drafted(self, anchor_B: Tensor, noise_D: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        noise_BKH = self.target.embed(block_ids(anchor_B, noise_D))
        # padded: contexts are shown at rounded lengths
        hidden_BDH = propose(self.draft, noise_BKH, *context, causal=self.draft.shape.causal, padded=True)[:, 1:]
        return self.target.logits(hidden_BDH.to(self.target.dtype)), hidden_BDH

    def _replay(self, run: Pass) -> Replay:
        return Replay(
            run,
            [self.draft, self.target.backbone.get_input_embeddings(), self.target.lm_head],
            recorder=self.target.recorder,
            num_held=2 * len(self.draft.layers),
        )


@dataclass(frozen=True)
class RecordedSlots:
    """Slots that are drafted when something is asked of them. given: what ``Recordings`` takes, the anchors first."""

    recordings: Recordings
    given: tuple[Tensor, ...]
    num_slots: int

    def drawn_up(self) -> Slots:
        """The slots with their logits."""
        return self.recordings.made(self.given[0], *self.recordings.slots(*self.given))

    def compute(self, work: Work) -> tuple[Tensor, ...]:
        """``work`` on the slots, in one pass with drafting them."""
        return self.recordings.compute(work, self.given)

    def walk(self, choose: Choose) -> Walk:
        """The chain that ``choose`` takes, left to right."""
        return Walk(*self.compute(likeliest_chain)) if choose is likeliest else self.drawn_up().walk(choose)


def likeliest_chain(slots: Slots) -> tuple[Tensor, ...]:
    """A greedy walk's tokens, logits and, where the head has one, confidence."""
    walk = slots.walk(likeliest)
    results = walk.tokens_BD, walk.logits_BDV
    return results if walk.confidence_BD is None else (*results, walk.confidence_BD)


def block_ids(anchor_B: Tensor, noise_D: Tensor) -> Tensor:
    """long [B, 1 + D]: each row's anchor, and the mask token in every slot behind it."""
    return torch.cat([anchor_B[:, None], noise_D.expand(len(anchor_B), -1)], dim=1)
