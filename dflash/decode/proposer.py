"""What proposes the tokens behind each row's anchor: a draft, or something cheaper to hold it against.

Stands between the batch and a draft session; what it proposes goes through the same verifiers, so that whatever it is,
the output stays the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from dflash.decode.recorded import RecordedSlots, Recordings, block_ids
from dflash.draft.draft import Draft
from dflash.draft.heads.slots import Slots, make_slots
from dflash.draft.session import DraftSession
from dflash.draft.stepping import SteppedSlots
from dflash.target.session import TargetSession
from dflash.target.target import Target


class Proposing(Protocol):
    """The state of one batch of rows. Letters: B rows, Q tokens of the target's last pass, K block."""

    def extend(self, ids_BQ: Tensor, taps_BQTH: Tensor | None, counts_B: Tensor, *, lengths: Sequence[int]) -> None:
        """Each row's next counts_B[b] <= Q tokens are decided, and the target has run on them; with them it holds
        lengths[b] tokens."""
        ...

    def slots(self, anchor_B: Tensor) -> Slots | RecordedSlots | SteppedSlots:
        """Up to K - 1 slots behind the anchors, the tokens that come right behind those."""
        ...

    def select(self, rows: Tensor, *, lengths: Sequence[int]) -> None:
        """Keep only these rows of the batch, which hold so many tokens each."""
        ...

    def join(self, other: Self) -> None:
        """The rows of ``other``, of the same proposer, come behind those here; no more than have left."""
        ...


class Proposer:
    """taps: layers of the target whose outputs it reads. block_size: tokens of a block, anchor included, if not told.
    confident: it says how sure it is that the target keeps a proposal. sequential: a slot is only known once those
    before it are chosen, so that no tree grows from them. label: what reports call it."""

    taps: tuple[int, ...] = ()
    block_size: int = 8
    confident: bool = False
    sequential: bool = False
    label: str = "draft"

    def open(self, beside: TargetSession, *, capacity: int, block_size: int) -> Proposing:
        """For the rows of a target's session, of at most ``capacity`` tokens here: as many, as much room for others,
        and recordings if it has any."""
        raise NotImplementedError


class BlockProposer(Proposer):
    """A DFlash draft: the whole block in one pass (paper section 3)."""

    def __init__(self, draft: Draft):
        self.draft = draft
        self.taps, self.block_size = draft.shape.taps, draft.shape.block_size
        self.confident = draft.shape.head is not None and draft.shape.head.confident
        self.recordings: Recordings | None = None

    def open(self, beside: TargetSession, *, capacity: int, block_size: int) -> Proposing:
        target, size = beside.target, {"capacity": capacity, "room": beside.room}
        if not beside.replays:
            return _Blocks(self.draft.open(beside.batch_size, **size), target, block_size=block_size)
        if self.recordings is None or self.recordings.target is not target:
            self.recordings = Recordings(self.draft, target)
        session = self.draft.open(beside.batch_size, extension=self.recordings.extend, **size)
        return _Blocks(session, target, block_size=block_size, recordings=self.recordings)


class StepProposer(Proposer):
    """A draft that goes left to right: a pass a slot."""

    sequential = True

    def __init__(self, draft: Draft):
        self.draft = draft
        self.taps, self.block_size = draft.shape.taps, draft.shape.block_size

    def open(self, beside: TargetSession, *, capacity: int, block_size: int) -> Proposing:
        session = self.draft.open(beside.batch_size, capacity=capacity, room=beside.room)
        return _Steps(session, beside.target, block_size=block_size)


def proposer_of(draft: Draft | Proposer) -> Proposer:
    """The way in which this draft proposes; what is no draft proposes itself."""
    if isinstance(draft, Proposer):
        return draft
    return StepProposer(draft) if draft.shape.left_to_right else BlockProposer(draft)


class _Blocks:
    def __init__(self, session: DraftSession, target: Target, *, block_size: int, recordings: Recordings | None = None):
        self.session, self.target, self.recordings = session, target, recordings
        self.draft = draft = session.draft
        self.noise_D = torch.full((block_size - 1,), draft.shape.mask_token_id, device=target.device)

    def extend(self, ids_BQ: Tensor, taps_BQTH: Tensor | None, counts_B: Tensor, *, lengths: Sequence[int]) -> None:
        self.session.extend(taps_BQTH, counts_B, lengths=lengths)

    def slots(self, anchor_B: Tensor) -> Slots | RecordedSlots:
        if self.recordings is not None:
            lengths_B, first, *buffers = self.session.context(1 + len(self.noise_D))
            given = anchor_B, self.noise_D, lengths_B, torch.tensor(first), *buffers
            return RecordedSlots(self.recordings, given, num_slots=len(self.noise_D))
        hidden_BDH = self.session.propose(self.target.embed(block_ids(anchor_B, self.noise_D)))[:, 1:]
        logits_BDV = self.target.logits(hidden_BDH.to(self.target.dtype))
        return make_slots(self.draft.head, logits_BDV, hidden_BDH, anchor_B, self.target.embed)

    def select(self, rows: Tensor, *, lengths: Sequence[int]) -> None:
        self.session.select(rows, lengths=lengths)

    def join(self, other: _Blocks) -> None:
        self.session.join(other.session)


class _Steps:
    def __init__(self, session: DraftSession, target: Target, *, block_size: int):
        self.session, self.target, self.num_slots = session, target, block_size - 1

    def extend(self, ids_BQ: Tensor, taps_BQTH: Tensor | None, counts_B: Tensor, *, lengths: Sequence[int]) -> None:
        self.session.extend(taps_BQTH, counts_B, lengths=lengths)

    def slots(self, anchor_B: Tensor) -> SteppedSlots:
        return SteppedSlots(self.session, anchor_B, self.num_slots, self.target.embed, self._logits)

    def select(self, rows: Tensor, *, lengths: Sequence[int]) -> None:
        self.session.select(rows, lengths=lengths)

    def join(self, other: _Steps) -> None:
        self.session.join(other.session)

    def _logits(self, hidden_B1H: Tensor) -> Tensor:
        return self.target.logits(hidden_B1H.to(self.target.dtype))
