"""How training comes by the target's features: anew for every batch, kept in memory by row, or stored on disk.

Stands between the batch and the draft in the training flow. The target is frozen, so a row's features never change;
a run that sees its rows many times need not compute them as often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from dflash.target.target import Target
from dflash.types import TargetFeatures, TokenBatch


class FeatureSource(Protocol):
    """``Target.features`` by some means."""

    def __call__(
        self, target: Target, batch: TokenBatch, taps: tuple[int, ...], *, with_last: bool
    ) -> TargetFeatures: ...

    def prepare(
        self,
        target: Target,
        rows: Callable[[], Sequence[TokenBatch]],
        taps: tuple[int, ...],
        *,
        with_last: bool,
        say: Callable[[str], None],
        progress: Callable[[int, int], None],
    ) -> None:
        """What must be done before the first batch. rows: gives every row that training will see, one to a batch.

        say: takes a sentence for the user. progress: takes (rows done, rows in all).
        """
        ...

    def kept_bytes(self, row_bytes: int, num_rows: int) -> int:
        """What it keeps in memory of ``num_rows`` different rows, for a plan."""
        ...

    def stored_bytes(self, row_bytes: int, num_rows: int) -> int:
        """What it writes to disk of them."""
        ...


class OnlineFeatures:
    """The target runs on every batch; nothing is kept."""

    def __call__(self, target: Target, batch: TokenBatch, taps: tuple[int, ...], *, with_last: bool) -> TargetFeatures:
        return target.features(batch, taps, with_last=with_last)

    def prepare(self, target: Target, rows, taps: tuple[int, ...], *, with_last: bool, say, progress) -> None:
        """Nothing."""

    def kept_bytes(self, row_bytes: int, num_rows: int) -> int:
        return 0

    def stored_bytes(self, row_bytes: int, num_rows: int) -> int:
        return 0


class MemoryFeatures:
    """Features of each row, computed when it is first seen and kept on the target's device, up to ``max_gib`` GiB.

    Rows beyond the limit are computed each time. A row is computed by itself, so that its features do not depend, by
    rounding, on the rows it came with: an interrupted run that is resumed computes the same numbers. For one target
    and one tuple of taps.
    """

    def __init__(self, *, max_gib: float):
        if max_gib <= 0:
            raise ValueError(f"features.max_gib={max_gib}: must be above 0; features=online keeps nothing")
        self.max_bytes = int(max_gib * 2**30)
        self.num_bytes = 0
        self._rows: dict[bytes, TargetFeatures] = {}

    def __call__(self, target: Target, batch: TokenBatch, taps: tuple[int, ...], *, with_last: bool) -> TargetFeatures:
        return join([self._row(target, row, taps, with_last) for row in split_rows(batch)])

    def prepare(self, target: Target, rows, taps: tuple[int, ...], *, with_last: bool, say, progress) -> None:
        """Nothing."""

    def kept_bytes(self, row_bytes: int, num_rows: int) -> int:
        return min(self.max_bytes, row_bytes * num_rows)

    def stored_bytes(self, row_bytes: int, num_rows: int) -> int:
        return 0

    def _row(self, target: Target, row: TokenBatch, taps: tuple[int, ...], with_last: bool) -> TargetFeatures:
        key = row_key(row)
        if key in self._rows:
            return self._rows[key]
        features = target.features(row, taps, with_last=with_last)
        size = num_bytes(features)
        if self.num_bytes + size <= self.max_bytes:
            self._rows[key] = features
            self.num_bytes += size
        return features


def row_key(row: TokenBatch) -> bytes:
    """What decides the features of a row, but for the target and the taps: its tokens and where documents end."""
    return b"".join(part.cpu().numpy().tobytes() for part in (row.ids_BS, row.documents_BS))


def split_rows(batch: TokenBatch) -> list[TokenBatch]:
    """Batches of one row each."""
    tensors = (batch.ids_BS, batch.documents_BS, batch.positions_BS, batch.supervised_BS)
    return [TokenBatch(*(tensor[b : b + 1] for tensor in tensors)) for b in range(len(batch.ids_BS))]


def join(rows: Sequence[TargetFeatures]) -> TargetFeatures:
    """The inverse of splitting, for features."""
    last = None if rows[0].last_BSH is None else torch.cat([row.last_BSH for row in rows])
    return TargetFeatures(torch.cat([row.taps_BSTH for row in rows]), last)


def num_bytes(features: TargetFeatures) -> int:
    return sum(part.nbytes for part in (features.taps_BSTH, features.last_BSH) if part is not None)
