"""Draws the arms of a study, or of all studies: acceptance and speedups with their intervals, an arm a line."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dflash.evaluation.plots import COLOURS, GREY, MARKERS, render, tidy
from dflash.study.statistics import Estimate
from dflash.study.summary import ArmSummary

ROOM = 0.34  # inches an arm takes


def arms_plot(arms: Sequence[ArmSummary], *, title: str, with_study: bool = False) -> bytes:
    """A PNG of two panels, the arms from top to bottom in the order given: acceptance with a dot for each seed, and
    speedup at each batch size."""
    figure = Figure(figsize=(11, 1.8 + ROOM * max(4, len(arms))), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(arms))
    for axes in (left, right):
        tidy(axes)
        axes.grid(axis="x", color="#E0E0E0", linewidth=0.8)
    for place, arm in zip(places, arms, strict=True):
        left.plot(arm.by_seed, [place] * len(arm.by_seed), "o", color=GREY, markersize=3, alpha=0.7)
    _points(left, places, [arm.acceptance for arm in arms], index=0, label=None)
    sizes = sorted({size for arm in arms for size in arm.speedups})
    for index, size in enumerate(sizes):
        shift = 0.24 * (index - (len(sizes) - 1) / 2)
        shifted = [place + shift for place in places]
        _points(right, shifted, [arm.speedups.get(size) for arm in arms], index=index + 1, label=f"batch {size}")
    right.axvline(1.0, color=GREY, linewidth=1, linestyle="--")
    left.set_yticks(places, [f"{arm.study}: {arm.arm}" if with_study else arm.arm for arm in arms], fontsize=9)
    left.set_ylim(len(arms) - 0.4, -0.6)
    left.set_xlabel("acceptance length (tokens per round), 95 %; grey: each seed")
    right.set_xlabel("speedup over plain decoding (times), 95 %")
    right.legend(frameon=False, fontsize=8, loc="best")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return render(figure)


def _points(axes: Axes, places, estimates: Sequence[Estimate | None], *, index: int, label: str | None) -> None:
    known = [(place, value) for place, value in zip(places, estimates, strict=True) if value is not None]
    style = {"color": COLOURS[index % len(COLOURS)], "label": label}
    axes.plot(
        [value.value for _, value in known],
        [place for place, _ in known],
        linestyle="",
        marker=MARKERS[index % len(MARKERS)],
        markersize=6,
        **style,
    )
    axes.hlines([p for p, _ in known], [v.low for _, v in known], [v.high for _, v in known], color=style["color"])
