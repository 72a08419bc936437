"""Rows one at a time, as batches of one: for work that is done once a row, before training."""

from __future__ import annotations

from collections.abc import Sequence

from dflash.data.pack import Row, collate
from dflash.types import TokenBatch


class SingleRows(Sequence):
    """Batches of one row of ``length`` tokens, made when they are asked for; a slice gives a list of them."""

    def __init__(self, rows: Sequence[Row], *, length: int, pad_id: int):
        self.rows = rows
        self.length = length
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> TokenBatch | list[TokenBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return collate([self.rows[index]], length=self.length, pad_id=self.pad_id)
