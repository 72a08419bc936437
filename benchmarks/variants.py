"""What variants of the draft cost a round, whatever they accept: untrained drafts of several recipes, timed in turn.

    python benchmarks/variants.py [--batches 1 8] [--repeats 100] [--variants "fusion=concat" "draft=depth3" ...]

Each variant is overrides of train.py. A round is proposing a block (the head's walk included), verifying it, and taking
the target's features into the draft's context. The calls of all variants take turns, so that a machine whose speed
moves moves all of them: what counts are the ratios to the first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from instruments import canvas, keep, machine, wait, wide_console
from rich.console import Console
from rich.progress import track
from rich.table import Table
from round_parts import parts_of_round

from dflash.allocator import keep_freed_memory
from dflash.assemble.train import make_module, train_parts
from dflash.compose import read_settings
from dflash.draft.draft import Draft
from dflash.replay import CALLS_TO_SETTLE, recording_at_once
from dflash.target.load import LoadedTarget

CONTEXT = 64  # tokens before the block
PLAIN = "fusion=concat mixing=bidirectional"
VARIANTS = (
    f"{PLAIN} heads=none", f"{PLAIN} heads=markov", f"{PLAIN} heads=selector", f"{PLAIN} heads=gru",
    "fusion=dflare mixing=bidirectional", "fusion=concat mixing=convolution", "fusion=dflare mixing=convolution",
    "fusion=dflare mixing=convolution draft=depth3", "fusion=dflare mixing=convolution draft.taps.count=1",
)  # fmt: skip


@torch.no_grad()
def measure(
    loaded: LoadedTarget, drafts: dict[str, Draft], *, batch_size: int, repeats: int, console: Console
) -> list[dict[str, Any]]:
    """A row a variant: median seconds of each part, of the round, and the round's ratio to the first variant's."""
    device = loaded.target.device.type
    context_BS = torch.zeros(batch_size, CONTEXT, dtype=torch.long, device=loaded.target.device)
    parts = {name: parts_of_round(loaded.target, draft, context_BS) for name, draft in drafts.items()}
    calls = [(name, part, call) for name, works in parts.items() for part, call in works.items()]
    with recording_at_once():
        for _, _, call in calls:
            for _ in range(CALLS_TO_SETTLE):
                call()
    times: dict[str, dict[str, list[float]]] = {name: {part: [] for part in works} for name, works in parts.items()}
    for _ in track(range(repeats), f"batch {batch_size}", console=console):
        for name, part, call in calls:
            wait(device)
            started = time.perf_counter()
            call()
            wait(device)
            times[name][part].append(time.perf_counter() - started)
    rows = []
    for name, found in times.items():
        seconds = {part: statistics.median(values) for part, values in found.items()}
        whole = sum(seconds.values())
        first = rows[0]["round"] if rows else whole
        parameters = drafts[name].num_parameters
        rows.append({"variant": name, "batch_size": batch_size, "parameters": parameters, **seconds})
        rows[-1] |= {"round": whole, "ratio": whole / first}
    return rows


def build_all(variants: Sequence[str]) -> tuple[LoadedTarget, dict[str, Draft]]:
    """The target of the first variant, and an untrained draft of each. ValueError for overrides that do not fit."""
    loaded, drafts = None, {}
    for variant in variants:
        settings = read_settings("train", variant.split())
        parts = train_parts(settings)
        loaded = parts["target"]() if loaded is None else loaded
        drafts[variant] = make_module(settings, parts, loaded).draft.eval()
    return loaded, drafts


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="a round of untrained drafts, in turn")
    for name in ("variant", "batch", "parameters", "propose ms", "verify ms", "extend ms", "round ms", "x first"):
        table.add_column(name, justify="left" if name == "variant" else "right", overflow="fold")
    for row in rows:
        spent = (f"{1e3 * row[part]:.2f}" for part in ("propose", "verify", "extend", "round"))
        counts = f"{row['batch_size']}", f"{row['parameters'] / 1e6:.2f} M"
        table.add_row(row["variant"], *counts, *spent, f"{row['ratio']:.3f}")
    console.print(table)


def picture(rows: Sequence[dict[str, Any]]):
    figure, (axis,) = canvas("Round of a draft, against the first variant", height=5.0)
    names = list(dict.fromkeys(row["variant"] for row in rows))
    for size in dict.fromkeys(row["batch_size"] for row in rows):
        ratios = [row["ratio"] for row in rows if row["batch_size"] == size]
        axis.plot(ratios, range(len(names)), "o", label=f"batch {size}")
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_xlabel("x the first")
    axis.legend()
    return figure


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="each one string of train.py's overrides")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--out", default="outputs/benchmarks/variants", help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, console = parse(arguments), wide_console()
    keep_freed_memory()
    try:
        loaded, drafts = build_all(options.variants)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    rows = []
    for size in options.batches:
        rows += measure(loaded, drafts, batch_size=size, repeats=options.repeats, console=console)
    result = {"machine": machine(loaded.target.device.type), "context_tokens": CONTEXT, "rows": rows}
    keep(result, picture(rows), folder=options.out, name="variants")
    show(rows, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
