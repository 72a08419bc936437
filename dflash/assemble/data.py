"""Recipes for training data, as conf ``data`` names them: where documents come from, and how they are packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from dflash.assemble.engines import as_generate
from dflash.data.corpus import read_corpus
from dflash.data.corpus_prompts import corpus_prompts
from dflash.data.documents import Document
from dflash.data.mixture import Source, check_weights, mixture_items
from dflash.data.modules import DistillationDataModule
from dflash.data.prompts import Prompt, row_to_prompt
from dflash.data.regenerate import regenerate
from dflash.data.regeneration.folder import responses_folder
from dflash.data.rows import BadLines, convert, file_rows, hub_rows
from dflash.data.shapes import Plain, Shape
from dflash.data.sources import check_fields, corpus_documents, file_documents, hub_documents, row_to_document
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.sampling import Sampling
from dflash.target.load import LoadedTarget
from dflash.target.reading import Reading
from dflash.training.launched import launched

Open = Callable[..., Iterable[Document]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """What all recipes share: the packing of ``DistillationDataModule``, whose docstring explains the values.

    needs_weights: whether the documents are the target's own work; the others need no more than its tokenizer.
    """

    needs_weights: ClassVar[bool] = False

    length: int
    batch_size: int
    num_workers: int = 0
    long: str = "cut"
    num_open: int = 16
    streaming: bool = False
    buffer_rows: int = 256
    lanes: int = 1
    bad_lines: BadLines = field(default_factory=BadLines, init=False, repr=False)

    def peek(self) -> None:
        """Look at a first row, where there are rows, before anything is loaded. Raises ValueError if it holds no text,
        or if there are none to be had."""

    def open(self, loaded: LoadedTarget | Reading, progress: Progress) -> Open:
        """What opens the documents; any dear work is done here, with ``progress(done, total)``."""
        raise NotImplementedError

    def questions(self, reading: Reading, *, max_tokens: int | None, count: int | None) -> Iterator[Prompt]:
        """The prompts of the data set, for the target to answer; longer ones than max_tokens are bad rows.

        Raises ValueError where there are none.
        """
        raise ValueError(
            f"data: {type(self).__name__} holds no prompts to answer; choose one that does, such as data=file "
            "data.path=my.jsonl"
        )

    def module(self, documents: Open, *, pad_id: int, seed: int, accumulate: int) -> DistillationDataModule:
        """The data module over them."""
        names = ("length", "batch_size", "num_workers", "long", "num_open", "streaming", "buffer_rows", "lanes")
        packing = {name: getattr(self, name) for name in names}
        return DistillationDataModule(documents, pad_id=pad_id, seed=seed, accumulate=accumulate, **packing)


@dataclass(frozen=True, kw_only=True)
class RegeneratedData(DataRecipe):
    """On-policy: the target answers the prompts; answers are cached under a fingerprint of all that decides them."""

    needs_weights: ClassVar[bool] = True

    prompts: Callable[..., Sequence[Prompt]]
    max_new_tokens: int
    cache: str
    seed: int
    temperature: float = 0.0
    regenerate_batch_size: int = 64
    shard_size: int = 256
    on_bad: str = "raise"

    def open(self, loaded: LoadedTarget, progress: Progress) -> Open:
        rank, world = launched()
        prompts = self._prompts(loaded)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))  # batches of like lengths pad little
        answered = regenerate(
            [prompts[i] for i in order],
            generate=self._generate(loaded),
            fingerprint=self.fingerprint(loaded),
            cache_dir=self.cache,
            shard_size=self.shard_size,
            progress=progress,
            rank=rank,
            world=world,
        )
        by_prompt = dict(zip(order, answered, strict=True))
        documents = [by_prompt[i] for i in range(len(prompts))]
        return lambda: documents

    def questions(self, reading: Reading, *, max_tokens: int | None, count: int | None) -> Iterator[Prompt]:
        found = self._prompts(reading)
        short = (prompt for prompt in found if max_tokens is None or len(prompt.ids) <= max_tokens)
        return islice(short, count)

    def _prompts(self, reading: LoadedTarget | Reading) -> Sequence[Prompt]:
        extra = {"bad_lines": self.bad_lines} if "on_bad" in self.prompts.keywords else {}
        return self.prompts(tokenizer=reading.tokenizer, **extra)

    def fingerprint(self, loaded: LoadedTarget) -> dict[str, Any]:
        """Everything but the prompts that decides the answers."""
        return {
            "target": loaded.target.fingerprint(),
            "dtype": str(loaded.target.dtype),
            "tokenizer": loaded.tokenizer_fingerprint(),
            "stop_token_ids": list(loaded.stop_token_ids),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed if self.temperature else None,
        }

    def _generate(self, loaded: LoadedTarget):
        decoder = AutoregressiveDecoder(loaded.target, sampling=Sampling(temperature=self.temperature, seed=self.seed))
        return as_generate(
            decoder,
            max_new_tokens=self.max_new_tokens,
            stop_token_ids=loaded.stop_token_ids,
            batch_size=self.regenerate_batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class CorpusData(DataRecipe):
    """The embedded corpus as it stands."""

    corpus_root: str | None = None

    def open(self, loaded: LoadedTarget, progress: Progress) -> Open:
        documents = list(corpus_documents(read_corpus(self.corpus_root), loaded.tokenizer))
        return lambda: documents


@dataclass(frozen=True, kw_only=True)
class RowData(DataRecipe):
    """Documents from rows: ``sources.file_documents`` says which there are. options go to the chat template."""

    max_tokens: int | None = None
    on_bad: str = "raise"
    options: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class FileData(RowData):
    """Local JSONL or Parquet, or the folder of a regeneration; see ``sources.file_documents``."""

    path: str
    columns: Mapping[str, str] | None = None
    shape: Shape = field(default_factory=Plain)

    def peek(self) -> None:
        reading = {name: getattr(self, name) for name in ("on_bad", "columns", "shape")}
        next(convert(self._rows(None), lambda origin, row: check_fields(row), **reading), None)

    def open(self, loaded: LoadedTarget | Reading, progress: Progress) -> Open:
        return partial(file_documents, self._folder(loaded), loaded.tokenizer, **self._reading())

    def questions(self, reading: Reading, *, max_tokens: int | None, count: int | None) -> Iterator[Prompt]:
        how = self._reading()
        to_prompt = row_to_prompt(reading.tokenizer, max_tokens, how.pop("options"))
        del how["max_tokens"]  # that of documents
        return islice(convert(self._rows(reading), to_prompt, **how), count)

    def _rows(self, reading: Reading | None) -> Iterator[tuple[str, Any]]:
        return file_rows(self._folder(reading))

    def _folder(self, reading: LoadedTarget | Reading | None) -> Path:
        tokenizer_sha256 = None if reading is None else reading.tokenizer_fingerprint()
        return responses_folder(self.path, tokenizer_sha256=tokenizer_sha256)

    def _reading(self) -> dict[str, Any]:
        names = ("max_tokens", "on_bad", "options", "columns", "shape", "bad_lines")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class HubData(FileData):
    """Any data set that ``datasets`` can stream; see ``sources.hub_documents``."""

    name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: Any = None

    def open(self, loaded: LoadedTarget | Reading, progress: Progress) -> Open:
        return partial(hub_documents, self.path, loaded.tokenizer, **self._where(), **self._reading())

    def _rows(self, reading: Reading | None) -> Iterator[tuple[str, Any]]:
        return hub_rows(self.path, **self._where())

    def _where(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("name", "split", "revision", "data_files")}


@dataclass(frozen=True, kw_only=True)
class MixtureData(RowData):
    """Several data sets, each document from one of them, drawn by weight; see ``mixture``. Endless, so it streams."""

    sources: Mapping[str, Source]
    seed: int
    streaming: bool = True

    def __post_init__(self):
        if not self.streaming:
            raise ValueError("data.streaming=false: a mixture has no end and cannot be held; set data.streaming=true")
        check_weights({name: source.weight for name, source in self.sources.items()})

    def open(self, loaded: LoadedTarget | Reading, progress: Progress) -> Open:
        return self._mixture(loaded, partial(row_to_document, loaded.tokenizer, self.max_tokens, self.options))

    def questions(self, reading: Reading, *, max_tokens: int | None, count: int | None) -> Iterator[Prompt]:
        if count is None:
            raise ValueError("count=null: a mixture has no end; say how many prompts, as in count=100000")
        make = partial(row_to_prompt, reading.tokenizer, max_tokens, self.options)
        return islice(self._mixture(reading, make)(), count)

    def _mixture(self, reading: LoadedTarget | Reading, make: Callable[[], Callable[[str, dict], Any]]) -> Open:
        how = {"on_bad": self.on_bad, "bad_lines": self.bad_lines}
        sha256 = reading.tokenizer_fingerprint()
        return partial(mixture_items, self.sources, make, seed=self.seed, tokenizer_sha256=sha256, **how)


def training_prompts(tokenizer, *, count: int, corpus_root: str | None = None, **cut: Any) -> list[Prompt]:
    """Prompts from the files of the embedded corpus that are not held out; ``cut`` as ``corpus_prompts`` takes it."""
    return corpus_prompts(read_corpus(corpus_root), tokenizer, count=count, held_out=False, **cut)
