"""Drafts that follow a script instead of weights: they know what the target will say, and say it, or something else.

Each has a draft's interface as far as the decoder uses it. A proposal is a hidden state that decodes to the token
wanted: a row of the tiny target's lm_head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dflash.draft.shape import DraftShape
from dflash.target.target import Target

Change = Callable[[int, int, int], int]  # (row, index in the sequence, right token) -> token proposed


class ScriptedDraft:
    """sequences: for each row, prompt and continuation, long enough for every block that may be proposed.

    head: none, as the decoder reads it. sureness: scale of the hidden states; at 1 the draft's probabilities are nearly
    uniform, at 30 nearly certain.
    """

    def __init__(
        self,
        target: Target,
        shape: DraftShape,
        sequences: Sequence[Sequence[int]],
        change: Change,
        *,
        sureness: float = 1.0,
    ):
        self.shape = shape
        self.head = None
        self.target = target
        self.sureness = sureness
        self.sequences = [list(sequence) for sequence in sequences]
        self.change = change
        self.num_opened = 0

    def open(self, batch_size: int, *, capacity: int, room: int | None = None) -> ScriptedSession:
        """A session of the next rows, which a call of a decoder opens in order, all of them."""
        first = self.num_opened % len(self.sequences)
        assert first + batch_size <= len(self.sequences)
        self.num_opened += batch_size
        return ScriptedSession(self, range(first, first + batch_size))

    def only(self, row: int) -> ScriptedDraft:
        """The same script for one row alone."""
        return ScriptedDraft(
            self.target,
            self.shape,
            [self.sequences[row]],
            lambda _, index, token: self.change(row, index, token),
            sureness=self.sureness,
        )


class ScriptedSession:
    def __init__(self, draft: ScriptedDraft, rows: range):
        self.draft = draft
        self.rows = list(rows)
        self.lengths_B = torch.zeros(len(self.rows), dtype=torch.long)

    def extend(self, taps_BQTH: Tensor, counts_B: Tensor, *, lengths: Sequence[int]) -> None:
        self.lengths_B = self.lengths_B + counts_B
        assert list(lengths) == self.lengths_B.tolist()

    def propose(self, noise_BKH: Tensor) -> Tensor:
        weight = self.draft.target.lm_head.weight
        hidden = torch.zeros_like(noise_BKH)
        for i, (row, length) in enumerate(zip(self.rows, self.lengths_B.tolist(), strict=True)):
            sequence = self.draft.sequences[row]
            anchor = self.draft.target.embed(torch.tensor(sequence[length]))
            assert torch.equal(noise_BKH[i, 0], anchor), "the block does not start at the token behind its context"
            for k in range(1, noise_BKH.shape[1]):
                hidden[i, k] = weight[self.draft.change(row, length + k, sequence[length + k])]
        return hidden * self.draft.sureness

    def select(self, rows: Tensor, *, lengths: Sequence[int]) -> None:
        self.rows = [self.rows[i] for i in rows.tolist()]
        self.lengths_B = self.lengths_B[rows]
        assert list(lengths) == self.lengths_B.tolist()

    def join(self, other: ScriptedSession) -> None:
        self.rows = self.rows + other.rows
        self.lengths_B = torch.cat([self.lengths_B, other.lengths_B])


def perfect(row: int, index: int, token: int) -> int:
    return token


def always_wrong(row: int, index: int, token: int) -> int:
    return (token + 1) % 64


def patchy(row: int, index: int, token: int) -> int:
    """Right about two times in three, differently in every row."""
    return token if (index * 7919 + row * 104729) % 97 % 3 else (token + 1) % 64


def expected_lengths(
    sequence: Sequence[int], change: Change, *, row: int, start: int, end: int, block_size: int
) -> tuple[int, ...]:
    """Tokens emitted in each round of greedy speculative decoding, walked by hand over the script.

    start: index of the first anchor (the token the prefill decides). end: where the output ends.
    """
    lengths, anchor = [], start
    while anchor + 1 < end:
        length = 1
        while (
            length < block_size and change(row, anchor + length, sequence[anchor + length]) == sequence[anchor + length]
        ):
            length += 1
        lengths.append(min(length, end - 1 - anchor))
        anchor += length
    return tuple(lengths)
