"""Writes a report (a plain dict of what a run measured) as JSON, markdown, CSV and plots, and reads it back.

The last verb of both scripts; everything in it works on plain values, so a report outlives the code that made it.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from dflash.evaluation import plots
from dflash.evaluation.fields import compact_value, escape, flat, key_rank, measurements_of
from dflash.evaluation.tables import (
    DETAIL_COLUMNS,
    compact_histograms,
    histogram_text,
    markdown_rows,
    markdown_table,
)

PACKAGES = ("torch", "transformers", "lightning", "hydra-core")
PLOTS = (
    ("curve", "acceptance_by_step.png", "Acceptance length against training step", plots.curve_plot),
    ("histogram", "acceptance_histogram.png", "Share of rounds by acceptance length", plots.histogram_plot),
    ("survival", "prefix_survival.png", "Share of rounds that accept the first k proposals", plots.survival_plot),
)
HOW_TO_READ = """\
* **Round**: one pass of the draft, which proposes a block, and one pass of the target, which verifies it.
* **Acceptance length**: tokens a round gains: the proposals accepted plus the target's own next token (the bonus), so
  1 means that no proposal was accepted, and the block size is the most there is. Where a stop token or the length limit
  cuts a round short, only the tokens really emitted count.
* **Mean** pools all rounds (tokens / rounds), which is what speed depends on; in brackets its 95 % bootstrap interval
  over prompts. The mean of per-prompt means stands apart, for comparison with those who publish that.
* **Median** and **p90** (90th percentile) are taken over the same pooled rounds.
* **Prefix survival** of slot k: share of all rounds in which the proposals 1 to k were all accepted (not conditional).
* **Proposals a round**: tokens besides the anchor in the target's pass: the slots of a chain, the nodes of a tree.
  **Expected** acceptance is what the draft's own probabilities promised for them, **realised** what the same rounds
  gained (without each prompt's last round, which may be cut): expected above realised is a draft too sure of itself.
* **Prompt lookup**, where it was measured: no draft at all; what followed the last time the text ended as it ends now
  is proposed, and verified in the same way.
* **AR**: plain autoregressive decoding of the same prompts with the same target and cache, one token per pass.
* **Speedup**: time of AR decoding / time of speculative decoding, prompt processing (prefill) left out, as the mean of
  the prompts' own ratios (with 95 % interval) and over all tokens together. Below 1 speculation slows things down.
* **Round cost**: time of one round in AR steps. Speedup is about mean acceptance length / round cost.
* **Lossless**: prompts whose output equals the target's own, token by token.
* **Regret** (below fp32 only): how far a chosen token's logit lies below the target's best in one teacher-forced pass.
  The bound is twice the largest difference between the logits of that pass and of passes over blocks of the same
  tokens, and at least twice the spacing of numbers at the largest logit: rounding alone stays within it. In fp32
  outputs must be equal.
* **Chain walk**: prompts whose acceptance lengths, worked out from one teacher-forced pass, equal real decoding's.
* **Repeated 4-grams**: share of 4-grams in the target's output that occurred before in it. Loops are easy to predict,
  so a high share makes the acceptance look better than it is.
"""


def write_report(report: Mapping, folder: str | Path) -> dict[str, Path]:
    """Write report.json, measurements.csv, report.md and plots/*.png into ``folder``; return what was written by name.

    Every file appears whole or not at all. Plots that the report has no figures for are left out, older ones removed.
    Raises ValueError for a value that JSON cannot hold, with its place in the report.
    """
    folder = Path(folder)
    report = plain(report)
    paths = {"json": folder / "report.json", "csv": folder / "measurements.csv"}
    write_whole(paths["json"], json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(paths["csv"], csv_text([flat(m) for m in measurements_of(report)]))
    pictures = {}
    for name, filename, caption, draw in PLOTS:
        path, image = folder / "plots" / filename, draw(report)
        if image is None:
            path.unlink(missing_ok=True)
            continue
        write_whole(path, image)
        pictures[name], paths[name] = (caption, path.relative_to(folder).as_posix()), path
    paths["markdown"] = folder / "report.md"
    write_whole(paths["markdown"], markdown_report(report, pictures))
    return paths


def read_report(folder: str | Path) -> dict[str, Any]:
    """The report in ``folder`` (or in the JSON file named); ValueError where it is missing or broken."""
    path = Path(folder)
    path = path if path.suffix == ".json" else path / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"no report at {path}: did the run fail? Name a folder that has a report.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): run again to write it anew") from error
    measured = report.get("measurements") if isinstance(report, dict) else None
    if not isinstance(report, dict) or not isinstance(measured or [], list):
        raise ValueError(f"{path} is not a report: an object with a list of measurements is wanted; run again")
    return report


def markdown_report(report: Mapping, pictures: Mapping[str, tuple[str, str]]) -> str:
    """The whole report.md; ``pictures`` maps names to (caption, path relative to the file)."""
    parts = [f"# {report.get('title') or 'Acceptance report'}"]
    if measurements_of(report):
        parts += ["## Measurements", markdown_table(report), markdown_table(report, DETAIL_COLUMNS)]
    bars = histogram_text(report)
    if bars:
        parts += ["## Rounds by acceptance length", compact_histograms(report), f"```text\n{bars}\n```"]
    parts += [f"![{caption}]({path})" for caption, path in pictures.values()]
    parts += ["## How to read it", HOW_TO_READ.strip()]
    for name in ("provenance", "used", "target", "draft", "data", "settings"):
        if report.get(name):
            rows = [[escape(str(key)), escape(compact_value(value))] for key, value in report[name].items()]
            parts += [f"## {name.capitalize()}", markdown_rows(["key", "value"], rows, left=2)]
    return "\n\n".join(parts) + "\n"


def provenance(
    command: str,
    *,
    seed: int,
    threads: int,
    gpu: str | None = None,
    seconds: Mapping[str, float] | None = None,
    packages: Iterable[str] = PACKAGES,
) -> dict[str, Any]:
    """What someone needs to repeat a run: command, seed, machine, threads, versions, commit, seconds per phase."""
    machine = f"{cpu_model()}, {os.cpu_count() or 1} logical cores" + (f", {gpu}" if gpu else "")
    versions = {"python": platform.python_version(), **{name: _version(name) for name in packages}}
    commit = git_commit(Path(__file__).parent)
    head = {"command": command, "seed": seed, "machine": machine, "threads": threads}
    return {**head, "git_commit": commit, "versions": versions, "seconds": dict(seconds or {})}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name: from /proc/cpuinfo where there is one, else what the platform module knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine() or "unknown processor"


def git_commit(folder: Path) -> str | None:
    """Commit of the checkout that tracks ``folder`` (with "-dirty" if changed); None outside one, or without git."""
    commands = (["ls-files", "--error-unmatch", "."], ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
    try:
        done = [
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in commands
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return done[-1].stdout.strip() or None


def plain(value: Any, where: str = "report") -> Any:
    """``value`` as JSON holds it: keys are strings in reading order, NaN is None, numbers are Python's own."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        items = sorted(((str(key), inner) for key, inner in value.items()), key=lambda item: key_rank((item[0],)))
        return {key: plain(inner, f"{where}.{key}") for key, inner in items}
    if isinstance(value, (list, tuple)):
        return [plain(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    raise ValueError(f"{where} is a {type(value).__name__}, which JSON cannot hold: hand in numbers, strings or lists")


def csv_text(rows: Sequence[Mapping], *, first: Sequence[str] = ()) -> str:
    """Rows as CSV over the union of their keys, ``first`` ahead; what a row lacks is an empty cell."""
    names = {name for row in rows for name in row}
    # A group that one row lacks (None) and another has (its leaves) needs no column of its own.
    names -= {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    columns = [*first, *sorted(names - set(first), key=key_rank)]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part: a temporary file, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
