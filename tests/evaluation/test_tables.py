"""Figures of a report reach the right cells, in console and markdown alike."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dflash.evaluation import fields, tables


def cells(markdown: str, row: int) -> dict[str, str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return dict(zip(lines[0], lines[2 + row], strict=True))


def rendered(renderable, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(renderable)
    return console.export_text()


def test_every_figure_in_its_cell(report):
    row = cells(tables.markdown_table(report), 1)
    assert row == {
        "measurement": "trained draft (block 8, batch 1, T=0)",
        "accept. mean (95 %)": "3.17 (2.97–3.37)",  # noqa: RUF001
        "med. / p90": "2 / 8",
        "AR tok/s": "1,234",
        "spec. tok/s": "99.4",
        "speedup, mean of prompts (95 %)": "1.72x (1.62–1.82)",  # noqa: RUF001
        "speedup by total": "1.75x",
        "round cost, AR steps": "1.81",
        "lossless": "**63 of 64**",
        "chain walk": "64 of 64",
    }
    details = cells(tables.markdown_table(report, tables.DETAIL_COLUMNS), 0)
    assert details["rounds"] == "2,000"
    assert details["mean of per-prompt acceptance"] == "1.11"
    assert details["spec. prefill"] == "0.0234 s"
    assert details["repeated 4-grams"] == "12.3 %"


def test_missing_figures_are_dashes(report):
    nothing = {"label": None, "acceptance": None, "speed": {"total_speedup": None, "round_cost_ar_steps": float("nan")}}
    row = list(cells(tables.markdown_table({"measurements": [nothing]}), 0).values())
    assert row == ["draft", "–", "– / –", *["–"] * 7]  # noqa: RUF001
    assert tables.histogram_text({"measurements": [nothing]}) == ""
    assert tables.compact_histogram(nothing) == fields.MISSING
    assert rendered(tables.console_report({"measurements": [nothing]}), 80)
    assert rendered(tables.console_report({}), 80)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_console_table_shows_all_figures(report, make_measurement, width):
    report["measurements"].append(make_measurement(batch_size=8, temperature=0.7))
    text = rendered(tables.console_report(report), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for figure in ("3.17", "2 / 8", "1,234", "99.4", "1.72x", "1.75x", "1.81", "63 of", "64 of", "412"):
        assert figure in text
    assert "walk" in text and "12.3 % repeated 4-grams" in text
    if width >= 100:
        assert "block 8, batch 8, T=0.7" in text


def test_histograms(report, make_measurement):
    trained = report["measurements"][1]
    assert tables.compact_histogram(trained) == "1:412 2:230 3:150 4:0 5:0 6:0 7:0 8:208"
    report["measurements"].append(make_measurement(batch_size=8))
    blocks = tables.histogram_text(report, width=40).split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [
        "untrained draft, block 8, batch 1, T=0",
        "trained draft, block 8, batch 1, T=0",
    ]
    first = blocks[1].splitlines()[1]
    assert first.split()[:3] == ["1", "412", "41.2"]
    assert first.count("█") == 16  # 41.2 % of 40
    assert blocks[1].splitlines()[8].split()[:3] == ["8", "208", "20.8"]


def test_integer_keys_and_longer_rounds_than_the_block():
    m = {"block_size": 2, "acceptance": {"histogram": {1: 3, 4: 1}}}
    assert fields.histogram_counts(m) == {1: 3, 2: 0, 3: 0, 4: 1}


def test_pipes_do_not_break_the_table(report):
    report["measurements"][0]["label"] = "a|b\nc"
    assert r"a\|b c" in tables.markdown_table(report)


def test_flat_names():
    row = {"a": {"mean_interval": [1, 2]}, "b": {"mean_interval": None}, "slots": [0.5, 0.25], "n": {"3": 4}}
    assert fields.flat(row) == {
        "a.mean_interval.low": 1,
        "a.mean_interval.high": 2,
        "b.mean_interval.low": None,
        "b.mean_interval.high": None,
        "slots.1": 0.5,
        "slots.2": 0.25,
        "n.3": 4,
    }


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (812, "812"), (4200, "4.2 K"), (3.1e6, "3.1 M"), (20.9e9, "20.9 B")],  # noqa: RUF001
)
def test_parameter_counts(count, text):
    assert fields.millions(count) == text
