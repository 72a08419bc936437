"""Draws a report as PNG images held in memory; whoever writes the files decides where they go.

Object-oriented matplotlib on Agg only: no pyplot, so no global state and no display. Colours are Okabe and Ito's.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dflash.evaluation.fields import full_label, histogram_counts, lookup, measurements_of, millions

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
GREY = "#767676"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STATISTICS = (("mean", "mean"), ("median", "median"), ("p90", "90th percentile"))
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


def numbers(values: Sequence[Any]) -> list[float]:
    """Values to draw; None becomes NaN, which leaves a gap."""
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
    return list(kept.values())


def _left_out(found: Sequence[Mapping]) -> str:
    """A remark where there are more measurements than colours."""
    return f"; the first {MAX_SERIES} of {len(found)} measurements" if len(found) > MAX_SERIES else ""


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
            numbers([p.get(key) for p in points]),
            color=COLOURS[index],
            marker=MARKERS[index],
            markersize=4 if len(points) <= 60 else 0,
            linewidth=1.8,
            label=label,
            clip_on=False,
        )
    axes.set_xlabel("training step (optimizer updates)")
    axes.set_ylabel("acceptance length (tokens per round)")
    low, high = axes.get_ylim()
    axes.set_ylim(min(1.0, low), max(2.0, high))
    if len(set(steps)) == 1:
        axes.set_xlim(steps[0] - 1, steps[0] + 1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _head(figure, "Acceptance length during training", setup_line(report))
    _legend_below(figure, axes)
    return render(figure)


def histogram_plot(report: Mapping) -> bytes | None:
    """Share of rounds by acceptance length, one group of bars per length; None without histograms."""
    found = [m for m in _distinct(report, "histogram") if sum(histogram_counts(m).values())]
    if not found:
        return None
    series = found[:MAX_SERIES]
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
    axes.set_xlim(0.4, longest + 0.6)
    axes.set_xticks(range(1, longest + 1, 1 + longest // 33))
    _head(figure, "How many tokens a round gains", setup_line(report) + _left_out(found))
    _legend_below(figure, axes, columns=1 if len(series) < 4 else 2)
    return render(figure)


def survival_plot(report: Mapping) -> bytes | None:
    """Share of rounds whose first k proposals were all accepted, per slot k; None where it was not measured."""
    found = _distinct(report, "prefix_survival")
    if not found:
        return None
    series = found[:MAX_SERIES]
    figure, axes = _canvas()
    for index, m in enumerate(series):
        shares = numbers(lookup(m, "acceptance", "prefix_survival"))
        slots = range(1, len(shares) + 1)
        style = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 5, "linewidth": 1.8}
        axes.plot(slots, shares, label=full_label(m, with_batch=False), clip_on=False, **style)
    axes.set_ylim(0, 1)
    axes.set_xlabel("slot k of the block (k-th proposed token)")
    axes.set_ylabel("share of rounds that accept slots 1 to k")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    _head(figure, "How far the accepted prefix reaches", setup_line(report) + _left_out(found))
    _legend_below(figure, axes, columns=1 if len(series) < 4 else 2)
    return render(figure)
