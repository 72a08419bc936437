"""Turns a report (a plain dict) into rows: console tables, markdown tables and text histograms.

Stands between the measurements and everything a person reads; one list of columns serves console and markdown alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dflash.evaluation.fields import (
    MISSING,
    describe,
    escape,
    figure,
    full_label,
    histogram_counts,
    lookup,
    measurements_of,
    percent,
    rate,
    short,
)

EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Cell:
    """One table cell: the figure, a detail under it (in brackets in markdown), and whether it is an alarm."""

    main: str = MISSING
    detail: str = ""
    alarm: bool = False

    def console(self) -> Text:
        """The cell as styled text, the detail on a line of its own."""
        text = Text(self.main, style="bold red" if self.alarm else "")
        if self.detail:
            text.append("\n" + self.detail, style="dim")
        return text

    def markdown(self) -> str:
        """The cell on one line, with the characters that would break a markdown table escaped."""
        text = f"{self.main} ({self.detail})" if self.detail else self.main
        return escape(f"**{text}**" if self.alarm else text)


@dataclass(frozen=True)
class Column:
    """A heading (with the line breaks a console needs), the function that reads its cell from one measurement, and the
    width to which a console may fold it (None: the figures stay in one piece)."""

    heading: str
    cell: Callable[[Mapping], Cell]
    folds_to: int | None = None

    @property
    def title(self) -> str:
        """The heading on one line."""
        return self.heading.replace("-\n", "").replace("\n", " ")


def _with_interval(measurement: Mapping, group: str, key: str, unit: str = "") -> Cell:
    bounds = lookup(measurement, group, f"{key}_interval")
    known = bounds is not None and len(bounds) == 2 and None not in bounds
    detail = f"{figure(bounds[0])}–{figure(bounds[1])}" if known else ""  # noqa: RUF001 (a range takes an en dash)
    return Cell(figure(lookup(measurement, group, key), ".2f", unit), detail)


def _of(measurement: Mapping, group: str) -> Cell:
    equal, total = lookup(measurement, group, "equal"), lookup(measurement, group, "total")
    if equal is None or total is None:
        return Cell()
    return Cell(f"{equal} of {total}", alarm=equal != total)


def _excused(measurement: Mapping, group: str) -> Cell:
    """Below fp32 near-ties may fall the other way: no alarm while every regret is within its bound."""
    cell = _of(measurement, group)
    within, total = (lookup(measurement, "divergence", "within", key) for key in ("equal", "total"))
    return replace(cell, alarm=cell.alarm and (within is None or within != total))


def _regret(measurement: Mapping) -> Cell:
    found = lookup(measurement, "divergence")
    if found is None:
        return Cell()
    worst, bound, earliest = (lookup(found, key) for key in ("worst_regret", "bound", "earliest"))
    where = "" if earliest is None else f"; {found['num_diverged']} diverge, the first at token {earliest + 1}"
    alarm = lookup(found, "within", "equal") != lookup(found, "within", "total")
    return Cell(f"{figure(worst, '.3g')} / {figure(bound, '.3g')}", f"{found['dtype']}{where}", alarm)


def _name(measurement: Mapping) -> Cell:
    return Cell(measurement.get("label") or "draft", describe(measurement))


def _median_p90(measurement: Mapping) -> Cell:
    return Cell(" / ".join(short(lookup(measurement, "acceptance", key)) for key in ("median", "p90")))


def _expected(measurement: Mapping) -> Cell:
    values = [lookup(measurement, "proposals", f"{kind}_acceptance") for kind in ("expected", "realised")]
    return Cell() if None in values else Cell(" / ".join(map(figure, values)))


def _plain(style: Callable[[Any], str], *keys: str) -> Callable[[Mapping], Cell]:
    return lambda measurement: Cell(style(lookup(measurement, *keys)))


def _times(value: Any) -> str:
    return figure(value, ".2f", "x")


def _seconds(value: Any) -> str:
    return figure(value, ".3g", " s")


MAIN_COLUMNS = (
    Column("measurement", _name, folds_to=30),
    Column("accept.\nmean\n(95 %)", lambda m: _with_interval(m, "acceptance", "mean")),
    Column("med.\n/ p90", _median_p90),
    Column("AR\ntok/s", _plain(rate, "speed", "ar_tokens_per_second")),
    Column("spec.\ntok/s", _plain(rate, "speed", "speculative_tokens_per_second")),
    Column("speedup,\nmean of\nprompts\n(95 %)", lambda m: _with_interval(m, "speed", "mean_prompt_speedup", "x")),
    Column("speed-\nup by\ntotal", _plain(_times, "speed", "total_speedup")),
    Column("round\ncost,\nAR\nsteps", _plain(figure, "speed", "round_cost_ar_steps")),
    Column("loss-\nless", lambda m: _excused(m, "lossless"), folds_to=5),
    Column("chain\nwalk", lambda m: _excused(m, "chain_walk"), folds_to=5),
)
DETAIL_COLUMNS = (
    Column("measurement", _name),
    Column("prompts", _plain(lambda v: figure(v, ",d"), "num_prompts")),
    Column("new tokens each, at most", _plain(lambda v: figure(v, ",d"), "max_new_tokens")),
    Column("rounds", _plain(lambda v: figure(v, ",d"), "acceptance", "num_rounds")),
    Column("tokens", _plain(lambda v: figure(v, ",d"), "acceptance", "num_tokens")),
    Column("mean of per-prompt acceptance", _plain(figure, "acceptance", "mean_of_prompts")),
    Column("proposals a round", _plain(lambda v: figure(v, ".1f"), "proposals", "mean")),
    Column("acceptance expected / realised", _expected),
    Column("regret, worst / bound", _regret),
    Column("AR prefill", _plain(_seconds, "speed", "ar_prefill_seconds")),
    Column("spec. prefill", _plain(_seconds, "speed", "speculative_prefill_seconds")),
    Column("repeated 4-grams", _plain(percent, "repeated_4gram_share")),
)


def measurement_rows(measurements: Iterable[Mapping], columns: Sequence[Column] = MAIN_COLUMNS) -> list[list[Cell]]:
    """One row of cells per measurement: what every table of this module is made of."""
    return [[column.cell(measurement) for column in columns] for measurement in measurements]


def measurement_table(report: Mapping) -> Table:
    """The main table for a console: fits 100 columns, and 80 with some cells folded."""
    table = Table(title=report.get("title"), box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.caption = _caption(report)
    for index, column in enumerate(MAIN_COLUMNS):
        side = "right" if index else "left"
        folding = {"no_wrap": column.folds_to is None, "max_width": column.folds_to, "overflow": "fold"}
        table.add_column(Text(column.heading), justify=side, min_width=5 if index else 13, **folding)
    for row in measurement_rows(measurements_of(report)):
        table.add_row(*[cell.console() for cell in row])
    return table


def _caption(report: Mapping) -> str | None:
    """What the figures were measured on, and how far the target's continuations repeat themselves."""
    lines = []
    for m in measurements_of(report):
        words = [f"{figure(m.get('num_prompts'), ',d')} prompts", f"{figure(m.get('max_new_tokens'), ',d')} new tokens"]
        if m.get("repeated_4gram_share") is not None:
            words.append(f"{percent(m['repeated_4gram_share'])} repeated 4-grams in the target's output")
        lines.append(", ".join(words))
    return "\n".join(dict.fromkeys(lines)) or None


def markdown_rows(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A markdown table from strings that are already escaped; the first ``left`` columns left, the others right."""
    marks = ["---" if index < left else "---:" for index in range(len(headings))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(headings), marks, *rows])


def markdown_table(report: Mapping, columns: Sequence[Column] = MAIN_COLUMNS) -> str:
    """The table of ``measurement_table`` (or of other columns) in markdown."""
    rows = measurement_rows(measurements_of(report), columns)
    return markdown_rows([c.title for c in columns], [[cell.markdown() for cell in row] for row in rows])


def compact_histogram(measurement: Mapping) -> str:
    """The histogram on one line: "1:412 2:230 3:96", or the en dash."""
    return " ".join(f"{length}:{count}" for length, count in histogram_counts(measurement).items()) or MISSING


def compact_histograms(report: Mapping) -> str:
    """The histograms of all measurements as a markdown list, a line each."""
    return "\n".join(f"* {full_label(m)}: `{compact_histogram(m)}`" for m in measurements_of(report))


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()


def histogram_text(report: Mapping, *, width: int = 40) -> str:
    """Text histograms of acceptance lengths, one block of lines per measurement that has one.

    Measurements that differ in batch size alone and count the same rounds are shown once.
    """
    blocks = {}
    for m in measurements_of(report):
        counts = histogram_counts(m)
        total = sum(counts.values())
        if not total:
            continue
        digits = max(len(f"{count:,}") for count in counts.values())
        lines = [
            f"{length:>3} {count:>{digits},} {100 * count / total:5.1f} % {_bar(count / total, width)}".rstrip()
            for length, count in counts.items()
        ]
        blocks.setdefault((full_label(m, with_batch=False), *lines), full_label(m))
    return "\n\n".join("\n".join([label, *key[1:]]) for key, label in blocks.items())


def console_report(report: Mapping) -> Group:
    """Everything the end of a run shows on a console: the table, then the histograms of acceptance lengths."""
    text = histogram_text(report)
    heading = Text("Rounds by acceptance length (bonus token included)", style="bold")
    return Group(measurement_table(report), *([heading, Text(text)] if text else []))
