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
from dflash.draft.session import DraftSession, propose


class Stepper:
    """One block behind each row's context; the keys and values of its own tokens stay until the context goes on."""

    def __init__(self, session: DraftSession):
        self.session = session
        self.num_read = 0

    @torch.no_grad()
    def step(self, token_B1H: Tensor) -> Tensor:
        """Hidden state [B, 1, H] of the next slot, given the embedding of the token before it, the anchor at first."""
        session, before = self.session, self.num_read
        self.num_read += 1
        context = session.context(self.num_read)
        return propose(session.draft, token_B1H, *context, causal=True, padded=session.padded, num_before=before)


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
