"""What a round costs by the number of its proposals, timed on the machine at hand or given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from dflash.decode.proposer import Proposer
from dflash.decode.rows import clock
from dflash.draft.heads.slots import likeliest
from dflash.replay import CALLS_TO_SETTLE, recording_at_once
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
def measure_costs(
    target: Target, proposer: Proposer, *, batch_size: int, block_size: int, max_proposals: int
) -> RoundCosts:
    """Time draft and target passes at this batch size: the target at powers of two, linear between them.

    The draft's time is that of a chain, its head included. The median of three, once warm; never less for more
    proposals.
    """
    opened = _Opened(target, proposer, batch_size=batch_size, block_size=block_size, room=1 + max_proposals)
    sizes = sorted({0, max_proposals, *(2**i for i in range(max_proposals.bit_length()))})
    seconds = [opened.verify_seconds(1 + count) for count in sizes]
    seconds = np.interp(range(max_proposals + 1), sizes, np.maximum.accumulate(seconds))
    return RoundCosts(sum(opened.proposing_seconds()), tuple(seconds.tolist()))


@torch.no_grad()
def measure_proposing(target: Target, proposer: Proposer, *, batch_size: int, block_size: int) -> tuple[float, float]:
    """Seconds of proposing one block as a chain: (a draft pass with the logits of its slots, the head's walk over
    them). A draft that goes left to right is all draft passes."""
    opened = _Opened(target, proposer, batch_size=batch_size, block_size=block_size, room=block_size)
    return opened.proposing_seconds()


class _Opened:
    """A batch whose rows hold a context of ``CONTEXT`` tokens and have room for as many more as ``room``.

    No pass is kept, so every one writes over the one before.
    """

    def __init__(self, target: Target, proposer: Proposer, *, batch_size: int, block_size: int, room: int):
        capacity = CONTEXT + max(room, block_size)
        ids_BS = torch.zeros(batch_size, CONTEXT, dtype=torch.long, device=target.device)
        lengths_B = torch.full((batch_size,), CONTEXT, device=target.device)
        self.target, self.sequential, self.anchor_B = target, proposer.sequential, ids_BS[:, 0]
        self.session = target.open(batch_size, capacity=capacity, taps=proposer.taps)
        _, taps_BSTH = self.session.advance(ids_BS)
        self.session.keep(lengths_B, longest=CONTEXT)
        self.proposing = proposer.open(target, batch_size, capacity=capacity, block_size=block_size)
        self.proposing.extend(ids_BS, taps_BSTH, lengths_B, longest=CONTEXT, ragged=False)

    def verify_seconds(self, num_tokens: int) -> float:
        """Of a target pass over so many tokens a row, logits included."""
        ids_BQ = self.anchor_B[:, None].expand(-1, num_tokens)
        return self._seconds(lambda: self.target.logits(self.session.advance(ids_BQ)[0]))

    def proposing_seconds(self) -> tuple[float, float]:
        if self.sequential:
            return self._seconds(lambda: self.proposing.slots(self.anchor_B).walk(likeliest)), 0.0
        draft = self._seconds(lambda: self.proposing.slots(self.anchor_B).drawn_up())
        slots = self.proposing.slots(self.anchor_B)
        walk = self._seconds(lambda: slots.walk(likeliest))
        if slots.drawn_up() is slots:
            return draft, walk
        return draft, max(0.0, walk - draft)  # a recorded chain drafts its slots as well

    def _seconds(self, work: Callable[[], object]) -> float:
        with recording_at_once():
            for _ in range(CALLS_TO_SETTLE):
                work()
        times = []
        for _ in range(REPEATS):
            start = clock(self.target.device)
            work()
            times.append(clock(self.target.device) - start)
        return median(times)
