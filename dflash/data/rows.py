"""Raw rows of JSONL, Parquet and hub data sets, and what happens to bad ones; under both sources and prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow
import pyarrow.parquet

ROLES = ("system", "developer", "user", "assistant", "tool")
JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json")
ON_BAD = ("raise", "skip")
TEMPLATE_OPTIONS = "template_options"  # field of a row: options of the chat template for it alone
Item = TypeVar("Item")


class BadRow(ValueError):
    """One row that cannot be used: ``reason`` is its kind (counted), ``detail`` what was found."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass
class BadLines:
    """Skipped rows, counted by reason, with the first few in words; shown in the report.

    A row counts once however often its source is read again.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set, repr=False)
    max_examples: int = 5

    def add(self, origin: str, bad: BadRow) -> None:
        if origin in self.seen:
            return
        self.seen.add(origin)
        self.counts[bad.reason] += 1
        if len(self.examples) < self.max_examples:
            self.examples.append(f"{origin}: {bad}")

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def convert(
    rows: Iterable[tuple[str, Any]],
    to_item: Callable[[str, dict], Item],
    *,
    on_bad: str = "raise",
    bad_lines: BadLines | None = None,
    columns: Mapping[str, str] | None = None,
    shape: Callable[[dict], dict] | None = None,
) -> Iterator[Item]:
    """``to_item(origin, row)`` of every row in order; rows that raise BadRow are raised or skipped and counted.

    columns: our field name -> the data set's, where they differ, such as {"messages": "conversation"}. shape: turns
    the data set's row into one of ours (``shapes``), behind ``columns``.
    """
    if on_bad not in ON_BAD:
        raise ValueError(f"data.on_bad={on_bad!r} is none of {', '.join(ON_BAD)}")
    bad_lines = BadLines() if bad_lines is None else bad_lines
    return _convert(rows, to_item, on_bad, bad_lines, columns or {}, shape or (lambda row: row))


def _convert(rows, to_item, on_bad: str, bad_lines: BadLines, columns: Mapping[str, str], shape) -> Iterator:
    for origin, raw in rows:
        try:
            row = parse_row(raw)
            for ours, theirs in columns.items():
                if theirs in row:
                    row[ours] = row[theirs]
            item = to_item(origin, shape(row))
        except BadRow as bad:
            if on_bad == "raise":
                raise ValueError(f"{origin}: {bad} (on_bad=skip leaves such rows out and counts them)") from bad
            bad_lines.add(origin, bad)
            continue
        yield item


def file_rows(path: str | Path, *, lane: int = 0, lanes: int = 1) -> Iterator[tuple[str, bytes | dict]]:
    """(``file:line``, row) of a JSONL or Parquet file, or of all such files of a folder, ordered by name.

    Of ``lanes`` equal shares, the rows of share ``lane``: every lanes-th of all, unread as far as that is possible.
    Raises ValueError if there is no such file, or if one cannot be read as what its suffix says.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"data.path={str(path)!r} does not exist; give a JSONL or Parquet file, or a folder of them")
    usable = (*JSONL_SUFFIXES, ".parquet")
    files = sorted(p for p in path.rglob("*") if p.suffix in usable) if path.is_dir() else [path]
    if not files or any(p.suffix not in usable for p in files):
        raise ValueError(f"data.path={str(path)!r} holds no file ending in {', '.join(usable)}")
    return _file_rows(files, lane, lanes)


def _file_rows(files: Sequence[Path], lane: int, lanes: int) -> Iterator[tuple[str, bytes | dict]]:
    before = 0  # rows of the files before
    for file in files:
        last = 0
        for last, row in (_parquet_rows if file.suffix == ".parquet" else _jsonl_rows)(
            file, (lane - before) % lanes, lanes
        ):
            if row is not None:
                yield f"{file}:{last}", row
        before += last


def hub_rows(
    path: str,
    *,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    data_files: Any = None,
    lane: int = 0,
    lanes: int = 1,
) -> Iterator[tuple[str, dict]]:
    """(``path/split:row``, row) of any data set that ``datasets`` can stream. Raises ValueError if it cannot.

    Of ``lanes`` equal shares, share ``lane``: whole files where their number is a multiple of lanes, else every
    lanes-th row.
    """
    import datasets  # takes seconds to import; only this source needs it
    from datasets.distributed import split_dataset_by_node

    try:
        rows = datasets.load_dataset(
            path, name=name, split=split, revision=revision, data_files=data_files, streaming=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"data.path={path!r} (name={name!r}, split={split!r}) cannot be opened as a hub data set: {error}; check "
            "the names and the network, or download it and give the files as a local source"
        ) from error
    share = f"{path}/{split}" if lanes == 1 else f"{path}/{split}[{lane} of {lanes}]"
    for number, row in enumerate(rows if lanes == 1 else split_dataset_by_node(rows, lane, lanes), 1):
        yield f"{share}:{number}", row


def row_options(row: Mapping[str, Any], options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of the chat template for this row: those for all, its own, and its tools."""
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {**(options or {}), **(row.get(TEMPLATE_OPTIONS) or {}), **tools}


def parse_row(raw: bytes | dict) -> dict:
    """The row as a dict without its empty fields; BadRow if it is not one JSON object."""
    if isinstance(raw, bytes):
        if not raw.strip():
            raise BadRow("empty line")
        try:
            raw = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRow("not UTF-8", str(error)) from None
        except (json.JSONDecodeError, RecursionError) as error:
            raise BadRow("not JSON", str(error)) from None
    if not isinstance(raw, dict):
        raise BadRow("wrong type", f"expected an object, found {type(raw).__name__}")
    return {key: value for key, value in raw.items() if value is not None}


def text_of(row: dict, key: str) -> str:
    """The text under ``key``; BadRow unless it is a non-empty string."""
    return checked_text(row[key], key)


def messages_of(row: dict) -> list[dict]:
    """The messages of a row, checked: a list of {"role", "content"}, known roles, something said in each."""
    messages = row["messages"]
    if not isinstance(messages, list):
        raise BadRow("wrong type", f"messages must be a list, found {type(messages).__name__}")
    if not messages:
        raise BadRow("empty text", "messages is an empty list")
    return [_checked_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def checked_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{where} must be a string, found {type(value).__name__}")
    if not value.strip():
        raise BadRow("empty text", f"{where} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow("not UTF-8", f"{where} holds half a surrogate pair") from None
    return value


def _checked_message(message: Any, where: str) -> dict:
    if not isinstance(message, dict):
        raise BadRow("wrong type", f"{where} must be an object, found {type(message).__name__}")
    message = {key: value for key, value in message.items() if value is not None}  # Parquet fills every field
    role = message.get("role")
    if role not in ROLES:
        raise BadRow("unknown role", f"{where}.role={role!r} is none of {', '.join(ROLES)}")
    if "thinking" in message and message["thinking"] != "":
        checked_text(message["thinking"], f"{where}.thinking")
    if not message.get("content") and role == "assistant" and message.get("tool_calls"):
        return {"content": "", **message}
    checked_text(message.get("content", ""), f"{where}.content")
    return message


def _jsonl_rows(file: Path, first: int, step: int) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, row) of every row; None for those that are not first, first + step, ..."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            yield number, line if (number - 1) % step == first else None


def _parquet_rows(file: Path, first: int, step: int) -> Iterator[tuple[int, dict | None]]:
    """As ``_jsonl_rows``; of a batch, only the rows wanted are converted."""
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=256):
                wanted = range((first - number) % step, len(batch), step)
                rows = iter(batch.to_pylist() if step == 1 else batch.take(pyarrow.array(wanted, "int64")).to_pylist())
                for i in range(len(batch)):
                    number += 1
                    yield number, next(rows) if i in wanted else None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not readable as Parquet after row {number}: {error}") from error
