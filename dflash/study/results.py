"""What a study has measured so far: results.csv, a row per trial and condition, and the same prompt by prompt.

A trial is finished when it has rows, and they are written together and whole; so a study that is killed at any moment
goes on where it stopped. per_prompt.jsonl is written first: what it holds of unfinished trials is not read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dflash.compose.job import number_or_text
from dflash.evaluation.fields import flat
from dflash.evaluation.report import csv_text, plain, write_whole

FIRST = ("arm", "seed", "batch_size", "temperature")
# Names and fingerprints, though they may look like numbers.
TEXT = ("arm", "measured", "target_fingerprint", "machine", "git_commit")
DETAILS = (("acceptance", "per_prompt"), ("speed", "per_prompt"))
Row = dict[str, Any]


class Results:
    """The rows of one study in ``folder``. Raises ValueError where its files are not what they should be."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows: list[Row] = []
        self._details: dict[tuple, Row] = {}
        if self.path.is_file():
            self._read()

    @property
    def path(self) -> Path:
        return self.folder / "results.csv"

    @property
    def details_path(self) -> Path:
        return self.folder / "per_prompt.jsonl"

    def rows_of(self, arm: str, seed: int | None = None) -> list[Row]:
        """The rows of an arm, of all seeds or one."""
        return [row for row in self.rows if row["arm"] == arm and seed in (None, row["seed"])]

    def details(self, row: Mapping) -> Row:
        """Prompt by prompt: acceptance [tokens, rounds]; speed [tokens, seconds] of baseline and draft, by batch."""
        return self._details[_key(row)]

    def finished(self, arm: str, seed: int, *, measured: str, target_fingerprint: str) -> bool:
        """Whether this trial is measured, with these settings and against this target."""
        rows = self.rows_of(arm, seed)
        same = {"measured": measured, "target_fingerprint": target_fingerprint}
        return bool(rows) and all(row[key] == value for row in rows for key, value in same.items())

    def add(self, head: Mapping, measurements: Sequence[Mapping], origin: Mapping) -> None:
        """Write a finished trial: ``head`` (arm and seed first), its measurements, and how they were come by."""
        rows, details = [], []
        for m in map(plain, measurements):
            measured = {key: value for key, value in flat(m).items() if key != "label"}
            rows.append({**head, **measured, **origin})
            details.append({key: rows[-1][key] for key in FIRST} | {a: m[a].get(b) for a, b in DETAILS})
        trial = (head["arm"], head["seed"])
        self.rows = [row for row in self.rows if (row["arm"], row["seed"]) != trial] + rows
        kept = {key: value for key, value in self._details.items() if key[:2] != trial}
        self._details = kept | {_key(detail): detail for detail in details}
        lines = [json.dumps(detail) for detail in self._details.values()]
        write_whole(self.details_path, "\n".join(lines) + "\n")
        write_whole(self.path, self._text())

    def _text(self) -> str:
        """The rows as CSV: which trial and condition, single values as they came, then groups of figures."""
        rows = [{key: value for key, value in row.items() if value is not None} for row in self.rows]
        single = dict.fromkeys(key for row in rows for key in row if "." not in key)
        return csv_text(rows, first=[*FIRST, *(key for key in single if key not in FIRST)])

    def _read(self) -> None:
        try:
            lines = self.details_path.read_text(encoding="utf-8").splitlines()
            details = [json.loads(line) for line in lines]
            self._details = {_key(detail): detail for detail in details}
            with self.path.open(encoding="utf-8", newline="") as stream:
                self.rows = [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(stream)]
            missing = [row for row in self.rows if _key(row) not in self._details]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{self.folder}: results.csv and per_prompt.jsonl are not both as a study writes them ({error!r}); "
                "restore them, or delete both and run the study again"
            ) from error
        if missing:
            name = f"{missing[0]['arm']} with seed {missing[0]['seed']}"
            raise ValueError(
                f"{self.details_path}: lacks {name}, which results.csv has; restore it, or delete both and run the "
                "study again"
            )


def _key(row: Mapping) -> tuple:
    return tuple(row[key] for key in FIRST)


def _value(key: str, text: str) -> Any:
    """A cell as it was written: text, a number, or None."""
    if text == "":
        return None
    if key in TEXT:
        return text
    return number_or_text(text)


def by_condition(rows: Sequence[Row]) -> Iterator[tuple[tuple, list[Row]]]:
    """((batch size, temperature), rows) in the order measured."""
    conditions = dict.fromkeys((row["batch_size"], row["temperature"]) for row in rows)
    for condition in conditions:
        yield condition, [row for row in rows if (row["batch_size"], row["temperature"]) == condition]
