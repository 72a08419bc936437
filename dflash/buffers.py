"""What target and draft sessions do to the buffers that hold their slots."""

from __future__ import annotations

from torch import Tensor


def write_slots(buffer: Tensor, new: Tensor, slots_BQ: Tensor, *, dim: int) -> None:
    """Row b's new[q] goes to buffer[slots[b, q]], in place: ``new`` [B, ...] has Q entries in dimension ``dim``, where
    ``buffer`` has as many as there are slots."""
    if len(new) == 1:  # one row: its slots are one index list, and index_copy_ is the cheaper write
        buffer.index_copy_(dim, slots_BQ[0], new)
    else:
        B, Q = slots_BQ.shape
        index = slots_BQ.view(B, *[1] * (dim - 1), Q, *[1] * (new.dim() - dim - 1))
        buffer.scatter_(dim, index.expand_as(new), new)


def join_rows(room: Tensor, count: int, new: Tensor, *, dim: int, num: int) -> Tensor:
    """``new``'s rows come behind the first ``count`` of ``room``, with their first ``num`` slots, which dimension
    ``dim`` counts: the rows that are in use then."""
    end = count + len(new)
    room[count:end].narrow(dim, 0, num).copy_(new.narrow(dim, 0, num))
    return room[:end]


def keep_rows(buffer: Tensor, rows: Tensor) -> Tensor:
    """Only these rows of a buffer (long [b]), which stays where it is in memory: [B, ...] -> [b, ...]."""
    return buffer[: len(rows)].copy_(buffer[rows])
