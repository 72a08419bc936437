"""Mixtures: several data sets as one endless stream, each document drawn from one of them by weight.

Stands between the sources and packing. What is drawn depends on the seed and the sources' content alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from dflash.data.regeneration.folder import responses_folder
from dflash.data.rows import BadLines, convert, file_rows, hub_rows
from dflash.data.shapes import Plain, Shape

Item = TypeVar("Item")


class Source(Protocol):
    """A data set in a mixture. weight: its share of the documents, relative to the other sources' weights."""

    weight: float
    shape: Shape
    columns: Mapping[str, str]

    def rows(self, *, tokenizer_sha256: str, lane: int = 0, lanes: int = 1) -> Iterator[tuple[str, Any]]:
        """(origin, row) of share ``lane`` of ``lanes``, the same each time.

        tokenizer_sha256: of the tokenizer that will read them; rows that are token ids already must be of the same.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FileSource:
    """A local JSONL or Parquet file, a folder of them, or the folder of a regeneration."""

    path: str
    weight: float = 1.0
    shape: Shape = field(default_factory=Plain)
    columns: Mapping[str, str] = field(default_factory=dict)

    def rows(self, *, tokenizer_sha256: str, lane: int = 0, lanes: int = 1) -> Iterator[tuple[str, Any]]:
        return file_rows(responses_folder(self.path, tokenizer_sha256=tokenizer_sha256), lane=lane, lanes=lanes)


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Any data set that ``datasets`` can stream."""

    path: str
    weight: float = 1.0
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: Any = None
    shape: Shape = field(default_factory=Plain)
    columns: Mapping[str, str] = field(default_factory=dict)

    def rows(self, *, tokenizer_sha256: str, lane: int = 0, lanes: int = 1) -> Iterator[tuple[str, Any]]:
        where = {"name": self.name, "split": self.split, "revision": self.revision, "data_files": self.data_files}
        return hub_rows(self.path, **where, lane=lane, lanes=lanes)


def mixture_items(
    sources: Mapping[str, Source],
    make: Callable[[], Callable[[str, dict], Item]],
    *,
    seed: int,
    tokenizer_sha256: str,
    on_bad: str,
    bad_lines: BadLines,
    lane: int = 0,
    lanes: int = 1,
) -> Iterator[Item]:
    """Endless: what ``make()`` makes of the rows of a share of the sources, mixed. Keywords as for ``rows.convert``.

    Plain arguments, so that a spawned worker can be sent them.
    """
    to_item = make()

    def stream(source: Source) -> Iterator[Item]:
        rows = source.rows(tokenizer_sha256=tokenizer_sha256, lane=lane, lanes=lanes)
        how = {"on_bad": on_bad, "bad_lines": bad_lines, "columns": source.columns, "shape": source.shape}
        return convert(rows, to_item, **how)

    streams = {name: partial(stream, source) for name, source in sources.items()}
    weights = {name: source.weight for name, source in sources.items()}
    return mix(streams, weights, rng=np.random.default_rng([seed, lane]))


def mix(
    streams: Mapping[str, Callable[[], Iterator[Item]]], weights: Mapping[str, float], *, rng: np.random.Generator
) -> Iterator[Item]:
    """Endless: each item from a stream drawn with probability proportional to its weight.

    A stream that ends begins again, so that shares hold however much longer the others are. A stream with weight 0
    is not opened. Raises ValueError for weights that are none, and at a stream that yields nothing.
    """
    check_weights(weights)
    names = [name for name in streams if weights[name] > 0]
    bounds = np.cumsum([weights[name] for name in names])
    running = {name: streams[name]() for name in names}
    while True:
        name = names[int(np.searchsorted(bounds[:-1], rng.random() * bounds[-1], side="right"))]
        item = next(running[name], None)
        if item is None:
            running[name] = streams[name]()
            item = next(running[name], None)
            if item is None:
                raise ValueError(
                    f"data.sources.{name}: yields no usable document (or fewer than data.lanes); leave it out by "
                    f"data.sources.{name}.weight=0"
                )
        yield item


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises ValueError unless all are finite and at least 0, and one is above."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"data.sources.{name}.weight={weight}: must be a number of at least 0")
    if not any(weight > 0 for weight in weights.values()):
        raise ValueError(f"data.sources: none of {', '.join(weights) or 'no sources'} has a weight above 0")
