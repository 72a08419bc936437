"""The batch stream: batch k is a pure function of (seed, k, rank, world), so that resuming needs only the number k.

Index before randomness: what is drawn depends on the index asked for, never on what was drawn before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from dflash.data.pack import Row, collate
from dflash.types import TokenBatch

NO_ROWS = "data: no rows to train on; the sources yielded no document"
ENDLESS = 2**40  # length of what has no end: without a length Lightning prefetches one batch, and a resume skips it


class RowSource(Protocol):
    """An endless seeded sequence of rows: ``row(index)`` is the same whatever was asked for before."""

    def row(self, index: int) -> Row: ...


def shuffled_index(seed: int, index: int, size: int) -> int:
    """Element ``index`` of an endless sequence of seeded permutations of ``range(size)``, one per epoch."""
    epoch, offset = divmod(index, size)
    return int(_permutation(seed, epoch, size)[offset])


@lru_cache(maxsize=4)  # a pure cache: what falls out is drawn again, equal
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


class MappedRows:
    """Rows held in memory, in a new seeded order each epoch. Raises ValueError if there are none."""

    def __init__(self, rows: Sequence[Row], seed: int):
        if not rows:
            raise ValueError(NO_ROWS)
        self.rows = rows
        self.seed = seed

    def row(self, index: int) -> Row:
        return self.rows[shuffled_index(self.seed, index, len(self.rows))]


class StreamedRows:
    """Rows of a source too long to hold, through a seeded shuffle buffer of ``buffer_rows`` rows.

    The source is read again from its start, in another order, whenever it ends. An index behind the current position
    replays it from the start, one ahead reads forward to it: so a resumed run reads what it skips, and every worker
    and rank reads everything and keeps its share. ``open_rows`` must yield the same rows each time it is called.
    """

    def __init__(self, open_rows: Callable[[], Iterable[Row]], seed: int, *, buffer_rows: int = 256):
        if buffer_rows < 1:
            raise ValueError(f"data.buffer_rows={buffer_rows} must be at least 1, which keeps the source's own order")
        self.open_rows = open_rows
        self.seed = seed
        self.buffer_rows = buffer_rows
        self._rewind()

    def row(self, index: int) -> Row:
        if index < self._position or self._process != os.getpid():  # a forked worker must not share open files
            self._rewind()
        while True:
            row = next(self._stream)
            self._position += 1
            if self._position > index:
                return row

    def _rewind(self) -> None:
        self._position = 0  # index of the next row of the stream
        self._process = os.getpid()
        self._stream = self._endless()

    def _endless(self) -> Iterator[Row]:
        epoch = 0
        while True:
            empty = True
            for row in self._shuffled(np.random.default_rng([self.seed, epoch])):
                empty = False
                yield row
            if empty:
                raise ValueError(NO_ROWS)
            epoch += 1

    def _shuffled(self, rng: np.random.Generator) -> Iterator[Row]:
        buffer: list[Row] = []
        for row in self.open_rows():
            if len(buffer) < self.buffer_rows:
                buffer.append(row)
                continue
            place = int(rng.integers(len(buffer)))
            yield buffer[place]
            buffer[place] = row
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def __getstate__(self) -> dict:
        """Without the position: a spawned worker starts its own."""
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._rewind()


class LanedRows:
    """As ``StreamedRows``, over a source that can give equal shares of itself: lanes.

    Micro-batch m of the whole world is lane m % lanes's own: so batches depend on the number of lanes, and not on how
    many ranks and workers share them; and where that number of processes divides the lanes, each reads only its own.
    open_rows(lane, lanes): the rows of a share, the same each time. buffer_rows: of all lanes together.
    """

    def __init__(
        self,
        open_rows: Callable[[int, int], Iterable[Row]],
        seed: int,
        *,
        lanes: int,
        batch_size: int,
        buffer_rows: int = 256,
    ):
        self.batch_size = batch_size
        seeds = np.random.SeedSequence(seed).generate_state(lanes)
        buffer = max(1, buffer_rows // lanes)
        self.lanes = [
            StreamedRows(partial(open_rows, lane, lanes), int(seeds[lane]), buffer_rows=buffer) for lane in range(lanes)
        ]

    def row(self, index: int) -> Row:
        batch, place = divmod(index, self.batch_size)
        turn, lane = divmod(batch, len(self.lanes))
        return self.lanes[lane].row(turn * self.batch_size + place)


class BatchStream(Dataset):
    """Endless map-style data set of TokenBatches.

    ``stream[k]`` is micro-batch k of this rank: rows (k * world + rank) * B .. + B of the source.
    """

    def __init__(self, rows: RowSource, *, length: int, batch_size: int, pad_id: int, rank: int = 0, world: int = 1):
        self.rows = rows
        self.length = length
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.rank = rank
        self.world = world

    def __getitem__(self, k: int) -> tuple[int, TokenBatch]:
        """(k, batch): the index travels with the batch, for every generator that is seeded by it."""
        first = (k * self.world + self.rank) * self.batch_size
        picked = [self.rows.row(first + i) for i in range(self.batch_size)]
        return k, collate(picked, length=self.length, pad_id=self.pad_id)

    def __len__(self) -> int:
        return ENDLESS


class IndexSampler(DistributedSampler):
    """Yields k = start(), start() + 1, ... for ever.

    ``start`` is asked when iteration begins, not before: by then a resumed run knows its step. A DistributedSampler
    in name only: Lightning leaves those in place under DDP, and here the stream itself gives each rank its share.
    """

    def __init__(self, start: Callable[[], int]):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        k = self.start()
        while True:
            yield k
            k += 1

    def __len__(self) -> int:
        return ENDLESS

    def set_epoch(self, epoch: int) -> None:
        """Nothing: epochs are the stream's own."""
