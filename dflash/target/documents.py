"""Packed rows run document by document, for targets whose layers carry a state along a whole row."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dflash.types import TokenBatch

Run = Callable[[TokenBatch], tuple[Tensor, Tensor | None]]


def by_document(run: Run, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
    """``run`` (-> [N, L, H], [N, L, T, H] or None) over a row for each document, put back where the documents stood.

    Padding behind a document's end changes nothing ahead of it. Padding of the batch itself is left zero. No pass has
    more tokens than the batch; documents of like length share one, so that little of it is padding.
    """
    B, S = batch.ids_BS.shape
    whole: list[Tensor | None] = [None, None]
    for starts_N, lengths_N in _groups(batch.documents_BS, budget=B * S):
        L = int(lengths_N[0])  # the longest
        offsets_L = torch.arange(L, device=starts_N.device)
        index_NL = (starts_N[:, None] + offsets_L).clamp_(max=B * S - 1)
        valid_NL = offsets_L < lengths_N[:, None]
        first_N = batch.positions_BS.flatten()[starts_N]
        part = TokenBatch(
            ids_BS=batch.ids_BS.flatten()[index_NL],
            documents_BS=torch.where(valid_NL, 0, -1),
            positions_BS=first_N[:, None] + offsets_L,
            supervised_BS=valid_NL,
        )
        for i, states in enumerate(run(part)):
            if states is None:
                continue
            if whole[i] is None:
                whole[i] = states.new_zeros(B * S, *states.shape[2:])
            whole[i][index_NL[valid_NL]] = states[valid_NL]
    last, taps = (None if states is None else states.unflatten(0, (B, S)) for states in whole)
    return last, taps


def _groups(documents_BS: Tensor, *, budget: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(starts, lengths), each long [N], of documents by falling length; N times the longest stays within ``budget``.

    A start is an index into the flattened batch. A batch of nothing but padding is one document.
    """
    B, S = documents_BS.shape
    border_BS = torch.ones_like(documents_BS, dtype=torch.bool)
    border_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    starts = border_BS.flatten().nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([B * S]))
    real = documents_BS.flatten()[starts] >= 0
    if real.any():
        starts, lengths = starts[real], lengths[real]
    lengths, order = lengths.sort(descending=True)
    starts, sizes = starts[order], lengths.tolist()
    at = 0
    while at < len(sizes):
        count = max(1, budget // sizes[at])
        yield starts[at : at + count], lengths[at : at + count]
        at += count
