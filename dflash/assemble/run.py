"""What both scripts need around a run: phases with their seconds, progress bars, and the pointer to the newest run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

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


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} {task.fields['unit']}/s")


@contextmanager
def bar(console: Console, what: str, *, unit: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with rate and remaining time; yields ``advance_to(done, total)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
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


def origin(command: str, *, seed: int, phases: Phases) -> dict:
    """Provenance of a report."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return provenance(command, seed=seed, threads=torch.get_num_threads(), gpu=gpu, seconds=phases.seconds)
