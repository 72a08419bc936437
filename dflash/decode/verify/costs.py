"""What a round costs by the number of its proposals, timed on the machine at hand or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from dflash.decode.rows import clock
from dflash.draft.draft import Draft
from dflash.draft.heads.slots import make_slots
from dflash.draft.session import DraftSession
from dflash.draft.stepping import SteppedSlots
from dflash.target.session import TargetSession
from dflash.target.target import Target

CONTEXT = 64  # tokens before the block that is timed
REPEATS = 3


@dataclass(frozen=True)
class RoundCosts:
    """draft_seconds: a draft pass. verify_seconds[n]: a target pass over an anchor and n proposals.

    Raises ValueError unless all are above 0.
    """

    draft_seconds: float
    verify_seconds: tuple[float, ...]

    def __post_init__(self):
        if not self.verify_seconds or min(self.draft_seconds, *self.verify_seconds) <= 0:
            raise ValueError(
                "costs of a round: seconds of draft and target must be above 0; leave them out to have them timed"
            )

    @property
    def max_proposals(self) -> int:
        return len(self.verify_seconds) - 1

    def best_count(self, num_rows: int, gains: Sequence[float]) -> int:
        """How many proposals give the most expected tokens per second.

        gains[n]: expected tokens of the batch that proposal n + 1 adds to the one token each row gains anyway.
        """
        tokens = num_rows + np.concatenate([[0.0], np.cumsum(gains)])
        seconds = self.draft_seconds + np.asarray(self.verify_seconds[: len(tokens)])
        return int(np.argmax(tokens / seconds))


@torch.no_grad()
def measure_costs(target: Target, draft: Draft, *, batch_size: int, block_size: int, max_proposals: int) -> RoundCosts:
    """Time draft and target passes at this batch size: the target at powers of two, linear between them.

    The draft's time is that of a chain, its head included. The median of three after one to warm up; never less for
    more proposals.
    """
    session, drafting, ids_BS = _opened(target, draft, batch_size=batch_size, room=1 + max_proposals)
    sizes = sorted({0, max_proposals, *(2**i for i in range(max_proposals.bit_length()))})

    def verify(count: int) -> None:
        # nothing is kept, so every pass writes over the one before
        target.logits(session.advance(ids_BS[:, :1].expand(-1, count + 1))[0])

    seconds = [_seconds(lambda count=count: verify(count), target.device) for count in sizes]
    seconds = np.interp(range(max_proposals + 1), sizes, np.maximum.accumulate(seconds))
    proposing = _proposing(target, draft, drafting, ids_BS[:, :1], block_size=block_size)
    return RoundCosts(sum(proposing), tuple(seconds.tolist()))


@torch.no_grad()
def measure_proposing(target: Target, draft: Draft, *, batch_size: int, block_size: int) -> tuple[float, float]:
    """Seconds of proposing one block: (a draft pass with the logits of its slots, the head's walk over them)."""
    _, drafting, ids_BS = _opened(target, draft, batch_size=batch_size, room=block_size)
    return _proposing(target, draft, drafting, ids_BS[:, :1], block_size=block_size)


def _opened(target: Target, draft: Draft, *, batch_size: int, room: int) -> tuple[TargetSession, DraftSession, Tensor]:
    """Sessions that hold a context of ``CONTEXT`` tokens and have room for as many more, and its ids."""
    capacity = CONTEXT + room
    session = target.open(batch_size, capacity=capacity, taps=draft.shape.taps)
    ids_BS = torch.zeros(batch_size, CONTEXT, dtype=torch.long, device=target.device)
    lengths_B = torch.full((batch_size,), CONTEXT, device=target.device)
    _, taps = session.advance(ids_BS)
    session.keep(lengths_B, longest=CONTEXT)
    drafting = draft.open(batch_size, capacity=capacity)
    drafting.extend(taps, lengths_B, longest=CONTEXT, ragged=False)
    return session, drafting, ids_BS


def _proposing(
    target: Target, draft: Draft, drafting: DraftSession, anchor_B1: Tensor, *, block_size: int
) -> tuple[float, float]:
    def choose(logits_BNV: Tensor, part: slice) -> Tensor:
        return logits_BNV.argmax(-1)

    if draft.shape.left_to_right and block_size > 1:  # all of its walk is the draft's own passes

        def logits(hidden_B1H: Tensor) -> Tensor:
            return target.logits(hidden_B1H.to(target.dtype))

        stepped = SteppedSlots(drafting, anchor_B1[:, 0], block_size - 1, target.embed, logits)
        return _seconds(lambda: stepped.walk(choose), target.device), 0.0
    noise_BKH = target.embed(anchor_B1.expand(-1, block_size))

    def states() -> tuple[Tensor, Tensor]:
        hidden_BDH = drafting.propose(noise_BKH)[:, 1:]
        return target.logits(hidden_BDH.to(target.dtype)), hidden_BDH

    slots = make_slots(draft.head, *states(), anchor_B1[:, 0], target.embed)
    walk_seconds = _seconds(lambda: slots.walk(choose), target.device)
    return _seconds(states, target.device), walk_seconds


def _seconds(work, device: torch.device) -> float:
    times = []
    for _ in range(1 + REPEATS):
        start = clock(device)
        work()
        times.append(clock(device) - start)
    return median(times[1:])
