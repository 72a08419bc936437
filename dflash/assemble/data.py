"""Recipes for training data, as conf ``data`` names them: where documents come from, and how they are packed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dflash.data.corpus import read_corpus
from dflash.data.documents import Document
from dflash.data.modules import DistillationDataModule
from dflash.data.prompts import Prompt, corpus_prompts
from dflash.data.regenerate import regenerate
from dflash.data.rows import BadLines
from dflash.data.sources import corpus_documents, file_documents, hub_documents
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.sampling import Sampling
from dflash.target.load import LoadedTarget

Open = Callable[[], Iterable[Document]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """What all recipes share: the packing of ``DistillationDataModule``, whose docstring explains the values."""

    length: int
    batch_size: int
    num_workers: int = 0
    long: str = "cut"
    num_open: int = 16
    streaming: bool = False
    buffer_rows: int = 256
    bad_lines: BadLines = field(default_factory=BadLines, init=False, repr=False)

    def open(self, loaded: LoadedTarget, progress: Progress) -> Open:
        """What opens the documents; any dear work is done here, with ``progress(done, total)``."""
        raise NotImplementedError

    def module(self, documents: Open, *, pad_id: int, seed: int, accumulate: int) -> DistillationDataModule:
        """The data module over them."""
        names = ("length", "batch_size", "num_workers", "long", "num_open", "streaming", "buffer_rows")
        packing = {name: getattr(self, name) for name in names}
        return DistillationDataModule(documents, pad_id=pad_id, seed=seed, accumulate=accumulate, **packing)


@dataclass(frozen=True, kw_only=True)
class RegeneratedData(DataRecipe):
    """On-policy: the target answers the prompts; answers are cached under a fingerprint of all that decides them."""

    prompts: Callable[..., Sequence[Prompt]]
    max_new_tokens: int
    cache: str
    seed: int
    temperature: float = 0.0
    regenerate_batch_size: int = 64
    shard_size: int = 256
    on_bad: str = "raise"

    def open(self, loaded: LoadedTarget, progress: Progress) -> Open:
        takes_bad_lines = "on_bad" in self.prompts.keywords
        extra = {"bad_lines": self.bad_lines} if takes_bad_lines else {}
        documents = regenerate(
            self.prompts(tokenizer=loaded.tokenizer, **extra),
            generate=self._generate(loaded),
            fingerprint=self.fingerprint(loaded),
            cache_dir=self.cache,
            batch_size=self.regenerate_batch_size,
            shard_size=self.shard_size,
            progress=progress,
        )
        return lambda: documents

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

        def generate(prompts: list[list[int]], first: int) -> list[tuple[int, ...]]:
            limits = {"max_new_tokens": self.max_new_tokens, "stop_token_ids": loaded.stop_token_ids}
            return [trace.tokens for trace in decoder.generate(prompts, first_index=first, **limits)[0]]

        return generate


@dataclass(frozen=True, kw_only=True)
class CorpusData(DataRecipe):
    """The embedded corpus as it stands."""

    corpus_root: str | None = None

    def open(self, loaded: LoadedTarget, progress: Progress) -> Open:
        documents = list(corpus_documents(read_corpus(self.corpus_root), loaded.tokenizer))
        return lambda: documents


@dataclass(frozen=True, kw_only=True)
class FileData(DataRecipe):
    """Local JSONL or Parquet; see ``sources.file_documents``."""

    path: str
    max_tokens: int | None = None
    on_bad: str = "raise"
    options: Mapping[str, Any] | None = None
    columns: Mapping[str, str] | None = None

    def open(self, loaded: LoadedTarget, progress: Progress) -> Open:
        return partial(file_documents, self.path, loaded.tokenizer, bad_lines=self.bad_lines, **self._reading())

    def _reading(self) -> dict[str, Any]:
        names = ("max_tokens", "on_bad", "options", "columns")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class HubData(FileData):
    """Any data set that ``datasets`` can stream; see ``sources.hub_documents``."""

    name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: Any = None

    def open(self, loaded: LoadedTarget, progress: Progress) -> Open:
        names = ("name", "split", "revision", "data_files")
        where = {name: getattr(self, name) for name in names}
        return partial(hub_documents, self.path, loaded.tokenizer, bad_lines=self.bad_lines, **where, **self._reading())


def training_prompts(tokenizer, *, count: int, corpus_root: str | None = None, **cut: Any) -> list[Prompt]:
    """Prompts from the files of the embedded corpus that are not held out; ``cut`` as ``corpus_prompts`` takes it."""
    return corpus_prompts(read_corpus(corpus_root), tokenizer, count=count, held_out=False, **cut)
