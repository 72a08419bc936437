"""Progress of a study: one bar over all trials, whose length is work and not their number, so that its ETA is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dflash.study.trials import Trial

WHOLE_RUN = 24 * 3600.0  # seconds over which speed is averaged: trials differ too much for less


def training_work(trial: Trial) -> float:
    """Rough cost of training the trial's draft: blocks times layers, where loss and heads count as two."""
    settings = trial.settings
    blocks = settings["steps"] * settings["accumulate"] * settings["data"]["batch_size"] * settings["num_anchors"]
    return blocks * settings["block_size"] * (2 + settings["draft"]["depth"])


def measuring_work(trial: Trial, *, num_prompts: int) -> float:
    """The same of measuring it: a decoded token costs about as much as this much training."""
    decoding = trial.settings["decoding"]
    return 250.0 * num_prompts * decoding["max_new_tokens"] * sum(1 / size for size in decoding["batch_sizes"])


class Phase:
    """A part of the work, of ``units``. ``at``: units done so far; ``add``: so many more."""

    def __init__(self, units: float, show: Callable[[float], None]):
        self.units, self.done, self.show = units, 0.0, show

    def at(self, done: float) -> None:
        self.done = done
        self.show(min(1.0, done / self.units))

    def add(self, more: float) -> None:
        self.at(self.done + more)


class StudyProgress:
    """How far a study is, shown on a console."""

    def __init__(self, bars: Progress, total: float):
        self.bars = bars
        self.whole = bars.add_task("", total=total, what="")
        self.done = 0.0

    @contextmanager
    def phase(self, what: str, *, work: float, units: float) -> Iterator[Phase]:
        """A part of ``work``; at its end all of it counts as done, however far it was told to be."""
        before = self.done

        def show(share: float) -> None:
            self.done = before + work * share
            self.bars.update(self.whole, completed=self.done, what=what)

        show(0.0)
        yield Phase(units, show)
        show(1.0)


@contextmanager
def study_progress(console: Console, total: float) -> Iterator[StudyProgress]:
    """A bar with the time gone and the time left."""
    columns = (TextColumn("{task.fields[what]}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=WHOLE_RUN) as bars:
        yield StudyProgress(bars, total)


def share_of(trials: Sequence[Trial], trial: Trial) -> str:
    """Which of all trials this is: "7 of 24"."""
    return f"{trials.index(trial) + 1} of {len(trials)}"
