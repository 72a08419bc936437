"""A block draft's part of a round as recordings: from the anchors to the slots, or on to the likeliest chain over them.

A small draft's round is half interpreter, so the fewer and longer its recorded passes are, the better. Which one is
needed is known when a verifier asks: a chain wants its tokens, a tree wants all logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dflash.draft.draft import Draft
from dflash.draft.heads.slots import Choose, Slots, Walk, likeliest, make_slots
from dflash.draft.session import propose, recorded_extension
from dflash.replay import Replay
from dflash.target.target import Target


class Recordings:
    """extend: of a session's contexts, see ``DraftSession``. slots, chain: take (anchor_B, noise_D, lengths_B, context
    buffers), and give (logits_BDV, hidden_BDH), or a walk's tokens, logits and, where the head has one, confidence.
    """

    def __init__(self, draft: Draft, target: Target):
        self.draft, self.target = draft, target
        read = [draft, target.backbone.get_input_embeddings(), target.lm_head]
        self.extend = recorded_extension(draft)
        self.slots = Replay(self._slots, read)
        self.chain = Replay(self._chain, read)

    def _slots(self, anchor_B: Tensor, noise_D: Tensor, lengths_B: Tensor, *buffers: Tensor) -> tuple[Tensor, Tensor]:
        noise_BKH = self.target.embed(block_ids(anchor_B, noise_D))
        hidden_BDH = propose(self.draft, noise_BKH, lengths_B, buffers, ragged=True)[:, 1:]
        return self.target.logits(hidden_BDH.to(self.target.dtype)), hidden_BDH

    def _chain(self, anchor_B: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        logits_BDV, hidden_BDH = self._slots(anchor_B, *rest)
        walk = make_slots(self.draft.head, logits_BDV, hidden_BDH, anchor_B, self.target.embed).walk(likeliest)
        results = walk.tokens_BD, walk.logits_BDV
        return results if walk.confidence_BD is None else (*results, walk.confidence_BD)


@dataclass(frozen=True)
class RecordedSlots:
    """Slots that are drafted when they are asked for. given: what ``Recordings`` takes, the anchors first."""

    recordings: Recordings
    given: tuple[Tensor, ...]
    num_slots: int

    def drawn_up(self) -> Slots:
        """The slots with their logits."""
        head, embed = self.recordings.draft.head, self.recordings.target.embed
        return make_slots(head, *self.recordings.slots(*self.given), self.given[0], embed)

    def walk(self, choose: Choose) -> Walk:
        """The chain that ``choose`` takes, left to right."""
        if choose is likeliest:
            return Walk(*self.recordings.chain(*self.given))
        return self.drawn_up().walk(choose)


def block_ids(anchor_B: Tensor, noise_D: Tensor) -> Tensor:
    """long [B, 1 + D]: each row's anchor, and the mask token in every slot behind it."""
    return torch.cat([anchor_B[:, None], noise_D.expand(len(anchor_B), -1)], dim=1)
