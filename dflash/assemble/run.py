"""What both scripts need around a run: phases with their seconds, progress bars, and the pointer to the newest run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dflash.evaluation.report import provenance


class Phases:
    """Seconds of each phase of a run, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class _Rate(TextColumn):
    """Units per second."""

    def render(self, task):
        speed = task.finished_speed or task.speed
        return self.get_table_column() and _rate_text(speed, task.fields["unit"])


def _rate_text(speed: float | None, unit: str):
    from rich.text import Text

    return Text("" if speed is None else f"{speed:,.1f} {unit}/s", style="progress.data.speed")


@contextmanager
def bar(console: Console, what: str, *, unit: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with rate and remaining time; yields ``advance_to(done, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(""))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(what, total=total, unit=unit)
        yield lambda done, whole: progress.update(task, completed=done, total=whole)


def point_latest(outputs: str | Path, folder: Path) -> None:
    """Make ``outputs``/latest a link to ``folder``; nothing where links cannot be made."""
    link = Path(outputs) / "latest"
    temporary = link.with_name(f".latest.{os.getpid()}")
    try:
        temporary.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
        temporary.replace(link)
    except OSError:
        temporary.unlink(missing_ok=True)


def newest_run(outputs: str | Path, name: str) -> Path:
    """The newest run of this name that has a checkpoint. Raises ValueError if there is none."""
    found = sorted((Path(outputs) / name).glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(
            f"resume=auto: no run with checkpoints under {Path(outputs) / name}; leave resume out to start one"
        )
    return found[-1]


def origin(command: str, *, seed: int, phases: Phases) -> dict:
    """Provenance of a report."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return provenance(command, seed=seed, threads=torch.get_num_threads(), gpu=gpu, seconds=phases.seconds)
