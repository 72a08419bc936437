"""Drafting a block left to right: the same layers over the same context, one token and one pass a slot.

EAGLE's way of drafting on DFlash's backbone (the paper's ablation "AR with KV injection"): each slot knows the tokens
before it, and K - 1 passes buy what a block draft has in one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dflash.draft.heads.head import Embed
from dflash.draft.heads.slots import Choose, Walk
from dflash.draft.session import DraftSession


class Stepper:
    """One block behind each row's context; the keys and values of its own tokens live as long as it does."""

    def __init__(self, session: DraftSession):
        self.session = session
        self.num_read = 0
        self.own: list[tuple[Tensor, Tensor] | None] = [None] * session.draft.shape.depth

    @torch.no_grad()
    def step(self, token_B1H: Tensor) -> Tensor:
        """Hidden state [B, 1, H] of the next slot, given the embedding of the token before it, the anchor at first."""
        session, draft = self.session, self.session.draft
        positions_B1 = session.lengths_B[:, None] + self.num_read
        self.num_read += 1
        rope = draft.rotary(positions_B1)
        windows = set(draft.shape.layout)
        masks = {window: session.mask(positions_B1, window, num_inside=self.num_read) for window in windows}
        hidden = token_B1H.to(draft.fc.weight.dtype)
        for index, layer in enumerate(draft.layers):
            hidden = layer(hidden, rope, self._attend_to(index, masks[layer.window]))
        return draft.norm(hidden)

    def _attend_to(self, index: int, mask: Tensor | None):
        over = self.session.attend_to(index, mask)

        def attend(query: Tensor, new: tuple[Tensor, Tensor]) -> Tensor:
            old = self.own[index]
            both = new if old is None else tuple(torch.cat(pair, dim=1) for pair in zip(old, new, strict=True))
            self.own[index] = both
            return over(query, both)

        return attend


@dataclass(frozen=True)
class SteppedSlots:
    """Slots that only come into being as they are walked. anchor_B: long. logits: the target's lm_head."""

    session: DraftSession
    anchor_B: Tensor
    num_slots: int
    embed: Embed
    logits: Callable[[Tensor], Tensor]

    def walk(self, choose: Choose) -> Walk:
        """The chain that ``choose`` takes, a pass of the draft for each of its tokens."""
        stepper, previous_B1 = Stepper(self.session), self.anchor_B[:, None]
        tokens, logits = [], []
        for slot in range(self.num_slots):
            logits.append(self.logits(stepper.step(self.embed(previous_B1))))
            previous_B1 = choose(logits[-1], slice(slot, slot + 1))
            tokens.append(previous_B1)
        return Walk(torch.cat(tokens, dim=1), torch.cat(logits, dim=1))
