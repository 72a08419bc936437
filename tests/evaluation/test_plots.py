"""Plots are PNGs of a sensible size, are left out without figures, and touch no global state."""

from __future__ import annotations

import io
import subprocess
import sys

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from dflash.evaluation import plots, sweep_plot


def size(image: bytes) -> tuple[int, int]:
    """Width and height, after making sure that something other than background was drawn."""
    pixels = matplotlib.image.imread(io.BytesIO(image), format="png")
    assert (pixels[..., :3].min(axis=-1) < 0.9).mean() > 0.005
    return pixels.shape[1], pixels.shape[0]


@pytest.mark.parametrize("draw", [plots.curve_plot, plots.histogram_plot, plots.survival_plot])
def test_report_plots(report, draw):
    image = draw(report)
    assert image.startswith(b"\x89PNG")
    assert size(image) == (1125, 675)
    assert draw({}) is None
    assert draw({"measurements": [{"label": "x", "acceptance": None}], "curve": []}) is None


def test_partial_figures():
    curve = [{"step": 0, "mean": None, "p90": 2}, {"step": None}, {"step": 5, "mean": 1.5}]
    assert size(plots.curve_plot({"curve": curve}))
    assert plots.curve_plot({"curve": [{"step": 1, "mean": None}]}) is None
    m = {"acceptance": {"histogram": {"1": 0}, "prefix_survival": []}}
    assert plots.histogram_plot({"measurements": [m]}) is None
    assert plots.survival_plot({"measurements": [m]}) is None


def test_more_measurements_than_colours_are_mentioned(monkeypatch, make_measurement):
    heads = []
    monkeypatch.setattr(plots, "_head", lambda figure, title, line: heads.append(line))
    report = {"measurements": [make_measurement(temperature=t / 10) for t in range(9)]}
    assert plots.histogram_plot(report) and plots.survival_plot(report)
    assert all(line.endswith("; the first 7 of 9 measurements") for line in heads) and len(heads) == 2


def test_setup_line(report):
    line = "target tiny_gpt_oss (4.1 M parameters); draft 2 layers (1.2 M parameters); block size 8"
    assert plots.setup_line(report) == line
    assert plots.setup_line({}) == "target unnamed"


def test_sweep_plot_grows_with_its_series(make_measurement):
    jobs = [make_measurement(block_size=k) for k in (4, 8)]
    one = size(sweep_plot.sweep_plot([4, 8], {"a": jobs}, title="t", key="block_size"))
    two = size(
        sweep_plot.sweep_plot(["x=1\ny=2", "x=2\ny=2"], {"a": jobs, "b": [None, jobs[1]]}, title="t", key="x, y")
    )
    assert one[0] == two[0] == 1650
    assert two[1] > 1.5 * one[1]
    assert sweep_plot.sweep_plot([], {}, title="t", key="k") is None


def test_swept_axis_is_true_valued():
    axes = Figure().add_subplot()
    axes.plot([4, 8, 16], [1, 2, 3])
    sweep_plot._swept_axis(axes, [16, 4, 8])
    assert list(axes.get_xticks()) == [4, 8, 16] and axes.get_xscale() == "linear"
    axes = Figure().add_subplot()
    axes.plot([1e-4, 1e-2], [1, 2])
    sweep_plot._swept_axis(axes, [1e-4, 1e-2])
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.0001", "0.01"]


def test_no_pyplot_and_no_torch():
    code = (
        "import sys, dflash.evaluation.combine\n"
        "print([m for m in ('matplotlib.pyplot', 'torch', 'lightning', 'hydra', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
