"""Data modules: documents to packed rows to endless batches, and where a resumed run takes them up again.

The only place in data where Lightning is known. A checkpoint needs nothing from here: batch k depends on k alone, and
checkpoints lie at borders of optimizer steps, so the trainer's step says which k is next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import lightning as L
from torch.utils.data import DataLoader

from dflash.data.documents import Document
from dflash.data.pack import Row, collate, pack, split_document
from dflash.data.stream import BatchStream, IndexSampler, LanedRows, MappedRows, RowSource, StreamedRows
from dflash.types import TokenBatch

LONG = ("cut", "split")


@dataclass
class PackingSummary:
    """What packing made of the documents; for the report. num_cut: documents that lost tokens to the length."""

    num_documents: int = 0
    num_cut: int = 0
    num_tokens: int = 0
    num_supervised: int = 0
    num_rows: int = 0


def fit_documents(
    documents: Iterable[Document], *, length: int, long: str = "cut", summary: PackingSummary | None = None
) -> Iterator[Document]:
    """Documents of at most ``length`` tokens: longer ones cut to their first ``length``, or split into pieces."""
    summary = PackingSummary() if summary is None else summary
    for document in documents:
        pieces = split_document(document, length=length)
        summary.num_documents += 1
        summary.num_cut += long == "cut" and len(pieces) > 1
        for piece in pieces[:1] if long == "cut" else pieces:
            summary.num_tokens += len(piece)
            summary.num_supervised += int(piece.supervised.sum())
            yield piece


class DistillationDataModule(L.LightningDataModule):
    """Endless training batches ``(k, TokenBatch)`` of packed documents.

    load_documents: opens the source; with ``streaming`` it is called again at each pass and in each worker, and must
    yield the same documents each time. length: tokens per row. batch_size: rows per micro-batch and rank.
    accumulate: micro-batches per optimizer step. long: what becomes of documents over ``length``, "cut" or "split".
    streaming: read the source as it is needed, with ``buffer_rows`` rows of shuffling, instead of holding it.
    lanes: equal shares of a streamed source, for its processes to share the work (``stream.LanedRows``); above 1,
    ``load_documents`` is called with ``lane`` and ``lanes``.
    """

    def __init__(
        self,
        load_documents: Callable[..., Iterable[Document]],
        *,
        length: int,
        batch_size: int,
        pad_id: int,
        seed: int,
        accumulate: int = 1,
        num_workers: int = 0,
        long: str = "cut",
        streaming: bool = False,
        buffer_rows: int = 256,
        num_open: int = 16,
        lanes: int = 1,
    ):
        super().__init__()
        if long not in LONG:
            raise ValueError(f"data.long={long!r} is none of {', '.join(LONG)}")
        _check_sizes(length=length, batch_size=batch_size, accumulate=accumulate, num_open=num_open, lanes=lanes)
        if lanes > 1 and not streaming:
            raise ValueError(f"data.lanes={lanes}: only a streamed source is shared out; set data.streaming=true")
        self.load_documents = load_documents
        self.length = length
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.seed = seed
        self.accumulate = accumulate
        self.num_workers = num_workers
        self.long = long
        self.streaming = streaming
        self.buffer_rows = buffer_rows
        self.num_open = num_open
        self.lanes = lanes
        self.rows: RowSource | None = None
        self.summary = PackingSummary()  # empty while streaming: what is read again must not be counted again

    def setup(self, stage: str | None = None) -> None:
        """Opens the rows, once. Raises ValueError if no document yields a supervised token."""
        if self.rows is not None:
            return
        source = _PackedSource(self)
        if self.streaming and self.lanes > 1:
            sizes = {"batch_size": self.batch_size, "buffer_rows": self.buffer_rows}
            self.rows = LanedRows(source.share, self.seed, lanes=self.lanes, **sizes)
            return
        if self.streaming:
            self.rows = StreamedRows(source, self.seed, buffer_rows=self.buffer_rows)
            return
        rows = list(source(self.summary))
        self.summary.num_rows = len(rows)
        if rows and not self.summary.num_supervised:
            raise ValueError(
                f"data.length={self.length} leaves no supervised token in {self.summary.num_documents} documents: "
                "their prompts fill it; raise data.length or shorten the prompts"
            )
        self.rows = MappedRows(rows, self.seed)

    def train_dataloader(self) -> DataLoader:
        return _train_loader(self, self.rows)


class PretrainDataModule(L.LightningDataModule):
    """Endless training batches ``(k, TokenBatch)`` for the tiny target, and its held-out windows in order.

    For one device: under several, every rank would score all windows.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        held_out_rows: Sequence[Row],
        *,
        length: int,
        batch_size: int,
        pad_id: int,
        seed: int,
        accumulate: int = 1,
        num_workers: int = 0,
    ):
        super().__init__()
        _check_sizes(length=length, batch_size=batch_size, accumulate=accumulate)
        self.rows = MappedRows(rows, seed)
        self.held_out_rows = held_out_rows
        self.length = length
        self.batch_size = batch_size
        self.pad_id = pad_id
        self.accumulate = accumulate
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader:
        return _train_loader(self, self.rows)

    def held_out_batches(self) -> list[TokenBatch]:
        """The held-out windows in order."""
        return [
            collate(self.held_out_rows[i : i + self.batch_size], length=self.length, pad_id=self.pad_id)
            for i in range(0, len(self.held_out_rows), self.batch_size)
        ]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out_batches(), batch_size=None, shuffle=False, collate_fn=_as_it_is)


class _PackedSource:
    """One pass over the source as packed rows; a class of its own, so that a spawned worker gets no trainer."""

    def __init__(self, module: DistillationDataModule):
        self.load_documents = module.load_documents
        self.length = module.length
        self.long = module.long
        self.num_open = module.num_open

    def __call__(self, summary: PackingSummary | None = None) -> Iterator[Row]:
        return self._packed(self.load_documents(), summary)

    def share(self, lane: int, lanes: int) -> Iterator[Row]:
        """One pass over a share of the source."""
        return self._packed(self.load_documents(lane=lane, lanes=lanes))

    def _packed(self, documents: Iterable[Document], summary: PackingSummary | None = None) -> Iterator[Row]:
        fitted = fit_documents(documents, length=self.length, long=self.long, summary=summary)
        return pack(fitted, length=self.length, num_open=self.num_open)


class _IndexedLoader(DataLoader):
    """Tells Lightning that it can be resumed, which it would else doubt aloud; its sampler knows where to start."""

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def _train_loader(module: DistillationDataModule | PretrainDataModule, rows: RowSource) -> DataLoader:
    trainer = module.trainer
    stream = BatchStream(
        rows,
        length=module.length,
        batch_size=module.batch_size,
        pad_id=module.pad_id,
        rank=trainer.global_rank,
        world=trainer.world_size,
    )
    return _IndexedLoader(
        stream,
        batch_size=None,  # the stream yields whole batches
        sampler=IndexSampler(lambda: trainer.global_step * module.accumulate),
        collate_fn=_as_it_is,
        num_workers=module.num_workers,
        persistent_workers=module.num_workers > 0,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )


def _as_it_is(batch):
    return batch


def _check_sizes(**sizes: int) -> None:
    for key, value in sizes.items():
        if value < 1:
            raise ValueError(f"data.{key}={value} must be at least 1")
