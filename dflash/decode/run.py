"""The host's side of a decode: which prompts are running, which wait for a place, limits and stop tokens.

Both decoders run here; what they do to tensors is their batch's business. A prompt that waits takes the place of one
that is done (continuous batching: Yu et al., Orca, 2022), so that a batch stays full until no prompt waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from dflash.decode.rows import Gained, Row, clock, pad_prompts
from dflash.types import DecodeTiming, DecodeTrace

FEWEST_TO_JOIN = 8  # a batch of 8 n rows waits for n free places, as prompts that are read together cost less
# Tokens of prompts in a pass, padding included: on a CPU more at once gain nothing and pad more.
READ_TOKENS = {"cpu": 1024}
READ_TOKENS_ELSEWHERE = 8192


class Rows(Protocol):
    """The device's side: the rows of one batch. anchor_B: long, the last token decided of each."""

    anchor_B: Tensor

    def round(self, lengths: list[int]) -> list[Gained]:
        """What each row gains in a round. ``lengths``: tokens each row has so far, anchor included."""
        ...

    def select(self, rows: Tensor, lengths: list[int]) -> None:
        """Keep only these rows (long [b]). ``lengths``: tokens each of them has so far, anchor included."""
        ...

    def join(self, other: Self) -> None:
        """The rows of ``other``, which ends with that, come behind those here: no more than have left."""
        ...


@dataclass(frozen=True)
class Opening:
    """Prompts to be read into a batch of their own: ids_BS, padded at the end, of which ``lengths`` are real; their
    numbers, ``indices``. Others may join them, none longer than ``longest`` tokens, up to ``room`` in all. passing: it
    will join another batch as soon as it has read, so it needs no slots for more."""

    ids_BS: Tensor
    lengths: list[int]
    indices: list[int]
    longest: int
    room: int
    passing: bool

    def capacity(self, more: int) -> int:
        """Slots a row needs for its prompt and, where it stays, ``more`` tokens."""
        return self.longest if self.passing else self.longest + more


class Run:
    """One call of a decoder. ``open_batch`` reads prompts. ``indices``: their numbers, which seed their sampling.
    ``batch_size``: most rows at a time, None: all prompts.

    rows: all of them, in order. num_rounds: rounds run so far. Raises ValueError for a batch size below 1, an empty
    prompt, and no prompts.
    """

    def __init__(
        self,
        open_batch: Callable[[Opening], Rows],
        prompts: Sequence[Sequence[int]],
        *,
        device: torch.device,
        max_new_tokens: int,
        stops: frozenset[int],
        indices: Sequence[int],
        batch_size: int | None,
    ):
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise ValueError("every prompt needs at least one token; drop empty prompts")
        self.open_batch, self.prompts, self.device = open_batch, prompts, device
        self.max_new_tokens, self.stops, self.indices = max_new_tokens, stops, indices
        self.batch_size = len(prompts) if batch_size is None else batch_size
        self.rows = [Row(i) for i in range(len(prompts))]
        self.running: list[Row] = []
        self.batch: Rows | None = None
        self.read_tokens = READ_TOKENS.get(device.type, READ_TOKENS_ELSEWHERE)
        self.num_rounds = self.num_read = 0
        self._started, self._reading = clock(device), 0.0

    def rounds(self) -> Iterator[list[tuple[Gained, int]]]:
        """What running rows gained and how much of it was emitted: of prompts as they are read, then by round."""
        while True:
            count = self._to_read()
            if count:
                gains = self._read(count)
            elif self.batch is not None:
                gains = [self._round(self.batch)]
            else:
                return
            for gained in gains:
                yield gained
                self._dismiss()

    def as_done(self) -> Iterator[tuple[int, DecodeTrace]]:
        """Each prompt's place in the call and what became of it, as soon as it is done."""
        for _ in self.rounds():
            yield from ((row.index, row.trace()) for row in self.running if self._done(row))

    def timing(self) -> DecodeTiming:
        """Seconds up to now, of reading prompts and of all else."""
        seconds = clock(self.device) - self._started
        return DecodeTiming(self._reading, seconds - self._reading, self.num_rounds)

    def traces(self) -> list[DecodeTrace]:
        return [row.trace() for row in self.rows]

    def _to_read(self) -> int:
        """How many of the prompts that wait are read now."""
        count = min(self.batch_size - len(self.running), len(self.rows) - self.num_read)
        together = min(-(-self.batch_size // FEWEST_TO_JOIN), len(self.rows) - self.num_read)
        return count if not self.running or count >= together else 0

    def _read(self, count: int) -> Iterator[list[tuple[Gained, int]]]:
        """Read the next prompts into the batch, those of like lengths together."""
        waiting = range(self.num_read, len(self.rows))
        self.num_read += count
        for part in alike({i: len(self.prompts[i]) for i in waiting[:count]}, most_tokens=self.read_tokens):
            started = clock(self.device)
            opened = self.open_batch(self._opening(part, waiting))
            rows = [self.rows[i] for i in part]
            if self.batch is None:
                self.batch = opened
            else:
                self.batch.join(opened)
            self.running = self.running + rows
            gained = [Gained([token]) for token in opened.anchor_B.tolist()]
            self._reading += clock(self.device) - started
            yield [(gain, self._emit(row, gain)) for row, gain in zip(rows, gained, strict=True)]

    def _opening(self, part: Sequence[int], waiting: range) -> Opening:
        """Of these prompts, where all from ``waiting`` on may join them if there is no batch yet."""
        prompts = [self.prompts[i] for i in part]
        passing = self.batch is not None
        joined = not passing and self.batch_size > 1
        return Opening(
            ids_BS=pad_prompts(prompts, device=self.device),
            lengths=[len(prompt) for prompt in prompts],
            indices=[self.indices[i] for i in part],
            longest=max(len(self.prompts[i]) for i in (waiting if joined else part)),
            room=len(part) if passing else min(self.batch_size, len(waiting)),
            passing=passing,
        )

    def _round(self, batch: Rows) -> list[tuple[Gained, int]]:
        gained = batch.round([self._length(row) for row in self.running])
        self.num_rounds += 1
        emitted = []
        for row, gain in zip(self.running, gained, strict=True):
            emitted.append((gain, self._emit(row, gain)))
            row.note(*emitted[-1])
        return emitted

    def _emit(self, row: Row, gained: Gained) -> int:
        return row.emit(gained.tokens, limit=self.max_new_tokens, stop_token_ids=self.stops)

    def _dismiss(self) -> None:
        """Rows that are done leave."""
        alive = [i for i, row in enumerate(self.running) if not self._done(row)]
        if len(alive) == len(self.running):
            return
        self.running = [self.running[i] for i in alive]
        if not alive:
            self.batch = None
        elif self.batch is not None:
            self.batch.select(torch.tensor(alive, device=self.device), [self._length(row) for row in self.running])

    def _done(self, row: Row) -> bool:
        return row.stopped or len(row.tokens) >= self.max_new_tokens

    def _length(self, row: Row) -> int:
        return len(self.prompts[row.index]) + len(row.tokens)


def alike(lengths: Mapping[int, int], *, most_tokens: int) -> list[list[int]]:
    """The keys in parts of like lengths, each of at most so many tokens when padded, or of one key: all in one part and
    in their order where that is enough."""
    if len(lengths) * max(lengths.values()) <= most_tokens:
        return [list(lengths)]
    parts: list[list[int]] = [[]]
    for key, length in sorted(lengths.items(), key=lambda item: item[1]):
        if parts[-1] and (len(parts[-1]) + 1) * length > most_tokens:
            parts.append([])
        parts[-1].append(key)
    return parts
