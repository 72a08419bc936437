"""What a round costs by the number of its proposals, timed on the machine at hand or given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from dflash.decode.proposer import Proposer
from dflash.decode.rows import clock
from dflash.draft.heads.slots import Work, likeliest
from dflash.replay import CALLS_TO_SETTLE, recording_at_once
from dflash.target.target import Target
from dflash.types import Tree

CONTEXT = 64  # tokens before the block that is timed
REPEATS = 3


@dataclass(frozen=True)
class RoundCosts:
    """draft_seconds: a draft pass, and what is made of its slots. verify_seconds[n]: a target pass over an anchor and n
    proposals.

    counts: numbers of proposals to choose among, of which 0 is one; None: all. Raises ValueError unless all seconds are
    above 0.
    """

    draft_seconds: float
    verify_seconds: tuple[float, ...]
    counts: tuple[int, ...] | None = None

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
        counts = range(len(tokens)) if self.counts is None else [n for n in self.counts if n < len(tokens)]
        return max(counts, key=lambda n: tokens[n] / seconds[n])


@torch.no_grad()
def measure_costs(
    target: Target,
    proposer: Proposer,
    *,
    batch_size: int,
    block_size: int,
    max_proposals: int,
    grow: Work | None = None,
) -> RoundCosts:
    """Time draft and target passes at this batch size: the target over powers of two of tokens (so many are the
    ``counts`` to choose among, that passes have few shapes and can be recorded), linear between them.

    The median of three, once warm; never less for more proposals. grow: makes a tree of the slots, and the target's
    passes are over trees; None: the draft's time is that of a chain, its head included.
    """
    opened = _Opened(target, proposer, batch_size=batch_size, block_size=block_size, room=1 + max_proposals)
    counts = sorted({0, max_proposals, *(2**i - 1 for i in range(1, (1 + max_proposals).bit_length()))})
    seconds = [opened.verify_seconds(1 + count, tree=grow is not None) for count in counts]
    seconds = np.interp(range(max_proposals + 1), counts, np.maximum.accumulate(seconds))
    draft_seconds = sum(opened.proposing_seconds()) if grow is None else opened.growing_seconds(grow)
    return RoundCosts(draft_seconds, tuple(seconds.tolist()), tuple(counts))


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
        lengths = [CONTEXT] * batch_size
        self.session.keep(lengths_B, lengths=lengths)
        self.proposing = proposer.open(self.session, capacity=capacity, block_size=block_size)
        self.proposing.extend(ids_BS, taps_BSTH, lengths_B, lengths=lengths)

    def verify_seconds(self, num_tokens: int, *, tree: bool) -> float:
        """Of a target pass over so many tokens a row, logits included; of a tree, one without branches."""
        ids_BQ = self.anchor_B[:, None].expand(-1, num_tokens)
        shape = _path(ids_BQ) if tree and num_tokens > 1 else None
        return self._seconds(lambda: self.target.logits(self.session.advance(ids_BQ, tree=shape)[0]))

    def proposing_seconds(self) -> tuple[float, float]:
        if self.sequential:
            return self._seconds(lambda: self.proposing.slots(self.anchor_B).walk(likeliest)), 0.0
        draft = self._seconds(lambda: self.proposing.slots(self.anchor_B).drawn_up())
        slots = self.proposing.slots(self.anchor_B)
        walk = self._seconds(lambda: slots.walk(likeliest))
        if slots.drawn_up() is slots:
            return draft, walk
        return draft, max(0.0, walk - draft)  # a recorded chain drafts its slots as well

    def growing_seconds(self, grow: Work) -> float:
        """Of a draft pass and the tree that ``grow`` makes of its slots."""
        return self._seconds(lambda: self.proposing.slots(self.anchor_B).compute(grow))

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


def _path(ids_BK: Tensor) -> Tree:
    """The tree in which every node follows the one before it."""
    B, K = ids_BK.shape
    depths_BK = torch.arange(K, device=ids_BK.device).expand(B, K).contiguous()
    visible_BKK = torch.ones(B, K, K, dtype=torch.bool, device=ids_BK.device).tril()
    return Tree(depths_BK[:, :-1], depths_BK, visible_BKK, K - 1)
