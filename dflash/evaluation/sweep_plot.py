"""Draws acceptance and speedup of a whole sweep against the swept key, as one PNG held in memory, for ``combine``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from dflash.evaluation.fields import lookup
from dflash.evaluation.plots import COLOURS, GREY, MARKERS, STATISTICS, numbers, render, tidy

SPEEDUPS = (("mean_prompt_speedup", "mean of prompts"), ("total_speedup", "by total tokens"))
LOG_RATIO = 30  # from this ratio of largest to smallest on, a swept axis is logarithmic


def sweep_plot(
    places: Sequence[float] | Sequence[str], series: Mapping[str, Sequence[Mapping | None]], *, title: str, key: str
) -> bytes | None:
    """Acceptance and speedup against a swept key: one row of two panels per series.

    places: per job its number (a true-valued axis, lines) or its name (categories, points only).
    series: name -> per job the measurement, or None where the job has none.
    """
    if not places or not series:
        return None
    numeric = not isinstance(places[0], str)
    labels = [] if numeric else ["\n".join(_clip(line) for line in str(place).split("\n")) for place in places]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    crowded = longest * len(labels) > 60
    width = 11.0 if numeric else min(max(11.0, 1.2 * len(labels) + 4), 30)
    figure = Figure(figsize=(width, 1.2 + (3.9 if crowded else 3.4) * len(series)), dpi=150, layout="constrained")
    panels = figure.subplots(len(series), 2, squeeze=False)
    xs = [float(place) for place in places] if numeric else [float(i) for i in range(len(places))]
    for (left, right), (name, measurements) in zip(panels, series.items(), strict=True):
        _panel(left, xs, measurements, "acceptance", STATISTICS, joined=numeric)
        left.set(ylabel="acceptance length (tokens per round)")
        right.axhline(1.0, color=GREY, linewidth=1, linestyle="--")
        _panel(right, xs, measurements, "speed", SPEEDUPS, joined=numeric, first_colour=3)
        right.set(ylabel="speedup over plain decoding (times)")
        for axes in (left, right):
            axes.set_title(name, loc="left", fontsize=9, color=GREY)
            axes.set_xlabel(key)
            _swept_axis(axes, xs) if numeric else _category_axis(axes, labels, crowded=crowded)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return render(figure)


def _panel(axes: Axes, xs: Sequence[float], measurements, group: str, keys, *, joined: bool, first_colour: int = 0):
    """One line (or one set of points) per statistic, with its 95 % interval where the report gives one."""
    tidy(axes)
    order = sorted(range(len(xs)), key=lambda i: xs[i])
    for index, (key, label) in enumerate(keys, start=first_colour):
        ys = numbers([lookup(measurements[i], group, key) for i in order])
        bounds = [lookup(measurements[i], group, f"{key}_interval") or (None, None) for i in order]
        # A category shows its statistics side by side, so that points and intervals do not hide each other.
        shift = 0.0 if joined else 0.16 * (index - first_colour - (len(keys) - 1) / 2)
        places = [xs[i] + shift for i in order]
        marks = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 6}
        axes.plot(places, ys, linestyle="-" if joined else "", linewidth=1.8, label=label, **marks)
        lows, highs = numbers([low for low, _ in bounds]), numbers([high for _, high in bounds])
        axes.vlines(places, lows, highs, color=COLOURS[index], linewidth=1.2)
    axes.set_ylim(bottom=min(1.0, axes.get_ylim()[0]) if group == "acceptance" else 0)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _clip(line: str, longest: int = 28) -> str:
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _swept_axis(axes: Axes, xs: Sequence[float]) -> None:
    """Ticks at the swept values themselves where they have room; logarithmic when they span decades."""
    values = sorted(set(xs))
    spread = values[-1] - values[0]
    logarithmic = values[0] > 0 and values[-1] / values[0] >= LOG_RATIO
    if logarithmic:
        axes.set_xscale("log")
    gaps = [high - low for low, high in itertools.pairwise(values)]
    if len(values) <= 10 and (logarithmic or not gaps or min(gaps) >= 0.07 * spread):
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{value:g}" for value in values]))
        axes.xaxis.set_minor_locator(NullLocator())


def _category_axis(axes: Axes, labels: Sequence[str], *, crowded: bool) -> None:
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    if crowded:
        axes.tick_params(axis="x", labelrotation=35)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
