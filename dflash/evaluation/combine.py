"""Joins the reports of a multirun folder into one table and one plot against whatever key was swept.

Runs after the last job of a sweep and reads nothing but the jobs' own folders, so it can be repeated at any time.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dflash.evaluation.fields import MISSING, compact_value, escape, flat, measurements_of
from dflash.evaluation.plots import MAX_SERIES
from dflash.evaluation.report import csv_text, read_report, write_whole
from dflash.evaluation.sweep_plot import sweep_plot
from dflash.evaluation.tables import MAIN_COLUMNS, markdown_rows, measurement_rows

CONDITIONS = ("batch_size", "temperature", "block_size", "max_new_tokens", "num_prompts")
_WORDS = {"batch_size": "batch ", "temperature": "T=", "block_size": "block ", "max_new_tokens": "new tokens "}


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its folder's name, its settings, its measurements, or why it has none."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    measurements: Sequence[Mapping] = ()
    error: str | None = None


def combine(folder: str | Path, *, title: str) -> Path | None:
    """Write combined.csv, combined.png and combined.md into a multirun folder; the path of the last.

    A table row per job and measurement, the swept keys first; jobs without a readable report are listed as failed.
    None, and nothing written, where the folder holds no jobs.
    """
    folder = Path(folder)
    jobs = read_jobs(folder)
    if not jobs:
        return None
    keys = swept_keys(jobs)
    write_whole(folder / "combined.csv", combined_csv(jobs, keys))
    image = combined_plot(jobs, keys, title=title)
    if image is None:
        (folder / "combined.png").unlink(missing_ok=True)
    else:
        write_whole(folder / "combined.png", image)
    path = folder / "combined.md"
    write_whole(path, combined_markdown(jobs, keys, title=title, picture=None if image is None else "combined.png"))
    return path


def read_jobs(folder: Path) -> list[Job]:
    """All jobs under ``folder`` in the order of their numbers."""
    found = sorted(_job_folders(folder), key=lambda path: _natural(path.relative_to(folder).as_posix()))
    return [_read_job(path, path.relative_to(folder).as_posix()) for path in found]


def _job_folders(folder: Path) -> Iterator[Path]:
    """Sub-folders that are jobs: numbered, or with a report or Hydra's own notes; others are searched in turn."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.is_dir() or path.is_symlink() or path.name.startswith("."):
            continue
        if path.name.isdecimal() or (path / "report.json").exists() or (path / ".hydra").is_dir():
            yield path
        else:
            yield from _job_folders(path)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_job(path: Path, name: str) -> Job:
    try:
        report = read_report(path)
    except ValueError as error:
        return Job(name, _noted_overrides(path), error=str(error).replace(str(path), name))
    return Job(name, report.get("settings") or {}, measurements_of(report))


def _noted_overrides(path: Path) -> dict[str, Any]:
    """The overrides Hydra noted before a job started: a YAML list of key=value strings, all a failed job leaves."""
    notes = path / ".hydra" / "overrides.yaml"
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.is_file() else []
    pairs = [line[2:].strip().strip("'\"").partition("=") for line in lines if line.startswith("- ")]
    return {key.lstrip("+~"): _parsed(value) for key, equals, value in pairs if equals}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Keys of the settings that differ between jobs; all keys where none does (a sweep of one job)."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.settings))
    known = [job for job in jobs if job.settings]
    varying = [key for key in keys if len({compact_value(job.settings.get(key)) for job in known}) > 1]
    return varying or keys


def combined_csv(jobs: Sequence[Job], keys: Sequence[str]) -> str:
    """A row per job and measurement; a job without measurements keeps one row that says why."""
    rows = []
    for job in jobs:
        head = {"job": job.name, **{key: job.settings.get(key) for key in keys}}
        head |= {"status": "failed" if job.error else "ok", "error": job.error}
        rows += [head | {k: v for k, v in flat(m).items() if k not in head} for m in job.measurements or [{}]]
    return csv_text(rows, first=["job", "status", "error", *keys])


def combined_markdown(jobs: Sequence[Job], keys: Sequence[str], *, title: str, picture: str | None) -> str:
    """Title, table, failed jobs and plot of a sweep."""
    headings = [*(escape(key) for key in keys), "job", *(column.title for column in MAIN_COLUMNS)]
    rows = []
    for job in jobs:
        head = [*(escape(compact_value(job.settings.get(key))) for key in keys), escape(job.name)]
        cells = [[cell.markdown() for cell in row] for row in measurement_rows(job.measurements)]
        state = "**failed**" if job.error else "no measurements"
        rows += [head + row for row in cells] or [[*head, state, *[MISSING] * (len(MAIN_COLUMNS) - 1)]]
    parts = [f"# {title}", markdown_rows(headings, rows, left=len(keys) + 2)]
    failed = [job for job in jobs if job.error]
    if failed:
        parts.append(f"## Failed: {len(failed)} of {len(jobs)} jobs")
        parts.append("\n".join(f"* {job.name}{_settings_of(job, keys)}: {job.error}" for job in failed))
    if picture:
        parts.append(f"![Acceptance length and speedup against {', '.join(keys) or 'job'}]({picture})")
        left_out = len(series_of(jobs)) - MAX_SERIES
        if left_out > 0:
            parts.append(f"The plot shows {MAX_SERIES} kinds of measurement; {left_out} more are in the table.")
    parts.append("Terms are explained in each job's own report.md.")
    return "\n\n".join(parts) + "\n"


def _settings_of(job: Job, keys: Sequence[str]) -> str:
    pairs = [f"{key}={compact_value(job.settings[key])}" for key in keys if key in job.settings]
    return f" ({', '.join(pairs)})" if pairs else ""


def series_of(jobs: Sequence[Job]) -> dict[str, list[Mapping | None]]:
    """Measurements of the same kind across jobs: name -> one per job, None where a job has none.

    Kinds are told apart by their label and by those conditions that vary inside a job; a condition that varies only
    between jobs is (or follows) the swept key and belongs on the axis.
    """
    varying = [c for c in CONDITIONS if any(_varies(job.measurements, c) for job in jobs)]
    series: dict[str, list[Mapping | None]] = {}
    for index, job in enumerate(jobs):
        seen: Counter[str] = Counter()
        for m in job.measurements:
            words = [f"{_WORDS.get(c, 'prompts ')}{compact_value(m[c])}" for c in varying if m.get(c) is not None]
            name = ", ".join([m.get("label") or "draft", *words])
            seen[name] += 1
            name += f" ({seen[name]})" if seen[name] > 1 else ""
            series.setdefault(name, [None] * len(jobs))[index] = m
    return series


def _varies(measurements: Sequence[Mapping], condition: str) -> bool:
    """Whether measurements of one label and one job differ in a condition."""
    values: dict[Any, set] = {}
    for m in measurements:
        values.setdefault(m.get("label"), set()).add(m.get(condition))
    return any(len(found) > 1 for found in values.values())


def combined_plot(jobs: Sequence[Job], keys: Sequence[str], *, title: str) -> bytes | None:
    """Lines on a true-valued axis for one numeric key, points by category for anything else; None without figures."""
    jobs = [job for job in jobs if job.measurements]
    series = dict(list(series_of(jobs).items())[:MAX_SERIES])
    numbers = [_number(job.settings.get(keys[0])) for job in jobs] if len(keys) == 1 else []
    numeric = bool(numbers) and None not in numbers and len(set(numbers)) == len(numbers)
    places = numbers if numeric else [_category(job, keys) for job in jobs]
    return sweep_plot(places, series, title=title, key=", ".join(keys) or "job")


def _category(job: Job, keys: Sequence[str]) -> str:
    """One line per key; with a single key its value is enough, since the axis names the key."""
    values = [compact_value(job.settings.get(key)) for key in keys]
    if len(keys) < 2:
        return values[0] if values else job.name
    return "\n".join(f"{key.rpartition('.')[2]}={value}" for key, value in zip(keys, values, strict=True))


def _number(value: Any) -> float | None:
    """A finite number, also one written as a string; None for anything else (a flag is no number)."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
