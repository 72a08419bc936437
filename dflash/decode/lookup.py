"""Prompt lookup (Saxena, 2023): propose what followed when the text last ended as it ends now; no draft, no weights.

The baseline that a draft must beat on text that repeats itself. It goes through the same decoder and verifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dflash.decode.proposer import Proposer, Proposing
from dflash.draft.heads.slots import Choose, Slots, Walk
from dflash.target.session import TargetSession


class Lookup(Proposer):
    """The longest n-gram, of ``longest`` tokens down to ``shortest``, that ends the text and stands in it before.

    Of several places the newest; a copy that reaches the end of the text goes on with what it has just proposed, so
    that loops fill the block. Rows without a match propose nothing; where no row of the batch has one, the target takes
    a plain step. Raises ValueError unless 1 <= shortest <= longest.
    """

    label = "prompt lookup"

    def __init__(self, *, longest: int = 3, shortest: int = 1):
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"baselines.lookup.shortest={shortest}: must be at least 1 and at most longest={longest}; try 1"
            )
        self.longest, self.shortest = longest, shortest

    def open(self, beside: TargetSession, *, capacity: int, block_size: int) -> Proposing:
        rows = [NgramIndex(longest=self.longest, shortest=self.shortest) for _ in range(beside.batch_size)]
        return _LookingUp(rows, vocab_size=beside.target.dims.vocab_size, num_slots=block_size - 1)


class NgramIndex:
    """One row's text and, for every n-gram in it, where it was seen last. A token costs the same however long it is."""

    def __init__(self, *, longest: int, shortest: int):
        self.longest, self.shortest = longest, shortest
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> index behind its newest place that has a next token

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self.tokens)  # n-grams that end here have a next token from now on
            for n in range(self.shortest, min(self.longest, end) + 1):
                self._ends[tuple(self.tokens[end - n :])] = end
            self.tokens.append(token)

    def propose(self, anchor: int, count: int) -> list[int]:
        """``count`` tokens behind the text and ``anchor``, or none."""
        text = [*self.tokens[-self.longest :], anchor]
        for n in range(min(self.longest, len(text)), self.shortest - 1, -1):
            end = self._found(tuple(text[-n:]))
            if end is not None:
                return self._copy(anchor, end, count)
        return []

    def _found(self, ngram: tuple[int, ...]) -> int | None:
        if tuple(self.tokens[-len(ngram) :]) == ngram:
            return len(self.tokens)  # the text without its anchor ends so, too: what follows is the anchor
        return self._ends.get(ngram)

    def _copy(self, anchor: int, start: int, count: int) -> list[int]:
        known = len(self.tokens)
        proposed: list[int] = []
        for index in range(start, start + count):
            behind = index - known  # 0 is the anchor, from 1 on what has just been proposed
            proposed.append(self.tokens[index] if behind < 0 else anchor if behind == 0 else proposed[behind - 1])
        return proposed


@dataclass(frozen=True)
class _Found(Slots):
    """Slots that are certain of one token each. counts_B: long, how many of them each row has; trees take them all."""

    counts_B: Tensor

    def walk(self, choose: Choose) -> Walk:
        return replace(super().walk(choose), counts_B=self.counts_B)


class _LookingUp:
    """Works on the host, which costs it two transfers a round besides the batch's own."""

    def __init__(self, rows: list[NgramIndex], *, vocab_size: int, num_slots: int):
        self.rows, self.vocab_size, self.num_slots = rows, vocab_size, num_slots

    def extend(self, ids_BQ: Tensor, taps_BQTH: Tensor | None, counts_B: Tensor, *, lengths: Sequence[int]) -> None:
        for row, ids, count in zip(self.rows, ids_BQ.tolist(), counts_B.tolist(), strict=True):
            row.extend(ids[:count])

    def slots(self, anchor_B: Tensor) -> Slots:
        anchors = anchor_B.tolist()
        found = [row.propose(anchor, self.num_slots) for row, anchor in zip(self.rows, anchors, strict=True)]
        num_slots = self.num_slots if any(found) else 0
        tokens = [row or [anchor] * num_slots for row, anchor in zip(found, anchors, strict=True)]
        tokens_BD = torch.tensor(tokens, dtype=torch.long, device=anchor_B.device).view(len(anchors), num_slots)
        certain_BDV = torch.full((*tokens_BD.shape, self.vocab_size), float("-inf"), device=anchor_B.device)
        counts_B = torch.tensor([len(row) for row in found], device=anchor_B.device)
        return _Found(certain_BDV.scatter(-1, tokens_BD[..., None], 0.0), counts_B)

    def select(self, rows: Tensor, *, lengths: Sequence[int]) -> None:
        self.rows = [self.rows[i] for i in rows.tolist()]

    def join(self, other: _LookingUp) -> None:
        self.rows = self.rows + other.rows
