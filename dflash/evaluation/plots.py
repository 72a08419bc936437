"""Draws a report (and a combined sweep) as PNG images held in memory; whoever writes the files decides where they go.

Object-oriented matplotlib on Agg only: no pyplot, so no global state and no display. Colours are Okabe and Ito's.
"""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from dflash.evaluation.fields import full_label, histogram_counts, lookup, measurements_of, millions

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
GREY = "#767676"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STATISTICS = (("mean", "mean"), ("median", "median"), ("p90", "90th percentile"))
SPEEDUPS = (("mean_prompt_speedup", "mean of prompts"), ("total_speedup", "by total tokens"))
LOG_RATIO = 30  # from this ratio of largest to smallest on, a swept axis is logarithmic
MAX_SERIES = len(COLOURS)


def render(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG, 150 dots per inch."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _canvas(width: float = 7.5, height: float = 4.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    tidy(axes)
    return figure, axes


def tidy(axes: Axes) -> None:
    """The look all plots share: no box, a light horizontal grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E0E0E0", linewidth=0.8)
    axes.set_axisbelow(True)


def setup_line(report: Mapping) -> str:
    """Target, draft and block size in one line, for the head of a plot."""
    target, draft = report.get("target") or {}, report.get("draft") or {}
    parts = [f"target {target.get('name') or 'unnamed'}{_size(target)}"]
    depth = f"{draft['depth']} layers" if draft.get("depth") is not None else ""
    if depth or draft.get("num_parameters") is not None:
        parts.append(f"draft {depth}{_size(draft)}".replace("  ", " "))
    sizes = sorted({m["block_size"] for m in measurements_of(report) if m.get("block_size") is not None})
    sizes = sizes or [s for s in [draft.get("block_size")] if s is not None]
    if sizes:
        parts.append("block size " + ", ".join(str(size) for size in sizes))
    return "; ".join(parts)


def _size(part: Mapping) -> str:
    count = part.get("num_parameters")
    return "" if count is None else f" ({millions(count)} parameters)"


def _head(figure: Figure, title: str, line: str, *, columns: int = 95) -> None:
    """Title in bold over a smaller line of conditions, both left; the layout makes room for every wrapped line."""
    wrapped = textwrap.wrap(line, columns)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.axes[0].set_title("\n".join(wrapped), loc="left", fontsize=9, color=GREY, pad=8)


def _numbers(values: Sequence[Any]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _legend_below(figure: Figure, axes: Axes, *, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _distinct(report: Mapping, key: str) -> list[Mapping]:
    """Measurements that have ``key``, once each: batches of another size decode the same rounds."""
    kept = {}
    for m in measurements_of(report):
        value = lookup(m, "acceptance", key)
        if value:
            kept.setdefault((full_label(m, with_batch=False), str(value)), m)
    return list(kept.values())[:MAX_SERIES]


def curve_plot(report: Mapping) -> bytes | None:
    """Acceptance length (mean, median, 90th percentile) against the optimizer step; None without a curve."""
    points = sorted((p for p in report.get("curve") or [] if p.get("step") is not None), key=lambda p: p["step"])
    if not any(p.get(key) is not None for p in points for key, _ in STATISTICS):
        return None
    figure, axes = _canvas()
    steps = [p["step"] for p in points]
    for index, (key, label) in enumerate(STATISTICS):
        axes.plot(
            steps,
            _numbers([p.get(key) for p in points]),
            color=COLOURS[index],
            marker=MARKERS[index],
            markersize=4 if len(points) <= 60 else 0,
            linewidth=1.8,
            label=label,
            clip_on=False,
        )
    axes.set_xlabel("training step (optimizer updates)")
    axes.set_ylabel("acceptance length (tokens per round)")
    axes.set_ylim(bottom=min(1.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _head(figure, "Acceptance length during training", setup_line(report))
    _legend_below(figure, axes)
    return render(figure)


def histogram_plot(report: Mapping) -> bytes | None:
    """Share of rounds by acceptance length, one group of bars per length; None without histograms."""
    series = [m for m in _distinct(report, "histogram") if sum(histogram_counts(m).values())]
    if not series:
        return None
    longest = max(max(histogram_counts(m)) for m in series)
    figure, axes = _canvas(width=min(7.5 + 0.15 * max(0, longest * len(series) - 32), 16))
    width = 0.84 / len(series)
    for index, m in enumerate(series):
        counts = histogram_counts(m)
        total = sum(counts.values())
        places = [length + (index - (len(series) - 1) / 2) * width for length in counts]
        shares = [count / total for count in counts.values()]
        label = f"{full_label(m, with_batch=False)} ({total:,} rounds)"
        axes.bar(places, shares, width=width * 0.92, color=COLOURS[index], label=label)
    axes.set_xlabel("acceptance length (tokens per round, bonus token included)")
    axes.set_ylabel("share of rounds")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(min(longest + 1, 20), integer=True))
    _head(figure, "How many tokens a round gains", setup_line(report))
    _legend_below(figure, axes, columns=1 if len(series) < 4 else 2)
    return render(figure)


def survival_plot(report: Mapping) -> bytes | None:
    """Share of rounds whose first k proposals were all accepted, per slot k; None where it was not measured."""
    series = _distinct(report, "prefix_survival")
    if not series:
        return None
    figure, axes = _canvas()
    for index, m in enumerate(series):
        shares = _numbers(lookup(m, "acceptance", "prefix_survival"))
        slots = range(1, len(shares) + 1)
        style = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 5, "linewidth": 1.8}
        axes.plot(slots, shares, label=full_label(m, with_batch=False), clip_on=False, **style)
    axes.set_ylim(0, 1)
    axes.set_xlabel("slot k of the block (k-th proposed token)")
    axes.set_ylabel("share of rounds that accept slots 1 to k")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    _head(figure, "How far the accepted prefix reaches", setup_line(report))
    _legend_below(figure, axes, columns=1 if len(series) < 4 else 2)
    return render(figure)


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
        ys = _numbers([lookup(measurements[i], group, key) for i in order])
        bounds = [lookup(measurements[i], group, f"{key}_interval") or (None, None) for i in order]
        # A category shows its statistics side by side, so that points and intervals do not hide each other.
        shift = 0.0 if joined else 0.16 * (index - first_colour - (len(keys) - 1) / 2)
        places = [xs[i] + shift for i in order]
        marks = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 6}
        axes.plot(places, ys, linestyle="-" if joined else "", linewidth=1.8, label=label, **marks)
        lows, highs = _numbers([low for low, _ in bounds]), _numbers([high for _, high in bounds])
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
