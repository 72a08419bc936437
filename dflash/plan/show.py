"""A plan as tables for the console."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table

from dflash.plan.plan import GIB, WHAT, Plan


def plan_tables(plan: Plan) -> Group:
    """Memory at the peak by part, work of a step by phase, and the whole run."""
    return Group(_memory(plan), _work(plan), _run(plan))


def _memory(plan: Plan) -> Table:
    table = _table("Memory of one device at the peak", "part", "GiB")
    for name, size in plan.parts.items():
        table.add_row(name, _gib(size))
    table.add_section()
    table.add_row("in all", _gib(plan.peak_bytes))
    table.add_row(
        "the device", "not known: budget.memory_gib" if plan.memory_bytes is None else _gib(plan.memory_bytes)
    )
    return table


def _work(plan: Plan) -> Table:
    table = _table("Work of one optimizer step on one device", "phase", "TFLOP", "seconds", "peak GiB")
    known = plan.rates is not None
    for name, phase in plan.rehearsal.step.items():
        seconds = f"{phase.seconds:.3g}" if known else "-"
        table.add_row(WHAT[name], f"{phase.flops / 1e12:.4g}", seconds, _gib(phase.peak_bytes))
    table.add_section()
    seconds = f"{plan.step_seconds:.3g}" if known else "-"
    table.add_row("in all", f"{plan.step_flops / 1e12:.4g}", seconds, _gib(plan.rehearsal.peak_bytes))
    return table


def _run(plan: Plan) -> Table:
    r = plan.rehearsal
    table = _table("The run", "what", "how much")
    table.add_row("parameters of the target", f"{r.num_target_parameters:,}")
    table.add_row("parameters of the draft, trained", f"{r.num_draft_parameters:,}")
    table.add_row("tokens", f"{plan.steps * plan.num_rows * plan.length:,} at most, {plan.steps:,} steps")
    seconds = "rates not known" if plan.step_seconds is None else _duration(plan.steps * plan.step_seconds)
    table.add_row("training, without evaluation and regeneration", f"at least {seconds}")
    if plan.rates is not None:
        rates = f"{plan.rates.flops / 1e12:.3g} TFLOP/s, {plan.rates.bytes / 1e9:.3g} GB/s"
        table.add_row("at the rates", rates)
    table.add_row("checkpoints on disk", f"{plan.num_checkpoints} x {_gib(plan.checkpoint_bytes)} GiB")
    if plan.stored_bytes:
        table.add_row("stored features on disk", f"{_gib(plan.stored_bytes)} GiB at most")
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", min_width=64)
    table.add_column(first)
    for other in others:
        table.add_column(other, justify="right")
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:,.3f}" if size < GIB else f"{size / GIB:,.2f}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
