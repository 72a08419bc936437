"""Packing: documents into rows of fixed length, with document ids and positions that restart at each document.

Stands between the sources and the batch stream. Deterministic: the same documents in the same order give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from dflash.data.documents import Document
from dflash.types import TokenBatch

Row = tuple[Document, ...]


def split_document(document: Document, *, length: int) -> list[Document]:
    """Pieces of at most ``length`` tokens, each of which starts again at position 0."""
    if len(document) <= length:
        return [document]
    starts = range(0, len(document), length)
    return [
        Document(document.ids[a : a + length], document.supervised[a : a + length], document.origin) for a in starts
    ]


def pack(documents: Iterable[Document], *, length: int, num_open: int = 16) -> Iterator[Row]:
    """Rows of whole documents, each row at most ``length`` tokens.

    Best fit over ``num_open`` rows kept open, so that little is wasted while memory stays bounded: a document goes
    into the fullest open row that still takes it; when none does and ``num_open`` are open, the fullest is closed.

    Raises ValueError if a document is longer than ``length`` (split or truncate it first).
    """
    rows: list[list[Document]] = []
    used: list[int] = []
    for document in documents:
        size = len(document)
        if size > length:
            raise ValueError(f"document {document.origin} has {size} tokens and data.length={length} is the limit")
        fits = [i for i, u in enumerate(used) if u + size <= length]
        if fits:
            best = max(fits, key=lambda i: used[i])
            rows[best].append(document)
            used[best] += size
        else:
            if len(rows) == num_open:
                fullest = max(range(len(rows)), key=lambda i: used[i])
                yield tuple(rows.pop(fullest))
                used.pop(fullest)
            rows.append([document])
            used.append(size)
    while rows:
        fullest = max(range(len(rows)), key=lambda i: used[i])
        used.pop(fullest)
        yield tuple(rows.pop(fullest))


def collate(rows: Sequence[Row], *, length: int, pad_id: int) -> TokenBatch:
    """A TokenBatch of B = len(rows) rows of S = ``length`` tokens; padding has document id -1."""
    shape = (len(rows), length)
    ids = np.full(shape, pad_id, dtype=np.int64)
    documents = np.full(shape, -1, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    supervised = np.zeros(shape, dtype=bool)
    for b, row in enumerate(rows):
        at = 0
        for d, document in enumerate(row):
            here = slice(at, at + len(document))
            ids[b, here] = document.ids
            documents[b, here] = d
            positions[b, here] = np.arange(len(document))
            supervised[b, here] = document.supervised
            at += len(document)
    return TokenBatch(*(torch.from_numpy(a) for a in (ids, documents, positions, supervised)))
