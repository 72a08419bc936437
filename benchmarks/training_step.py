"""Speed and memory of a training step of the draft, against length, anchors, block size and vocabulary.

    python benchmarks/training_step.py [--shape small] [--lengths 256 512] [--repeats 5] [--out FOLDER]
    python benchmarks/training_step.py --device cuda --shape gpt_oss_20b

The project's own step: anchors, blocks, draft, loss, gradients, clipping, AdamW, on random features and a random frozen
embedding and lm_head of the true shape: the step's cost depends on their sizes and on nothing they hold. The target's
own pass is not in it. One value varies at a time, around the shape's own sizes. The floor beside each figure is the
operations that cannot be avoided (``flops.py``) over the rate of a matrix product measured here, at the same precision.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from draft_step import ATTENTION, SHAPES, VARIED, Case, Step, attention_of
from flops import step_flops
from instruments import (
    PeakMemory,
    canvas,
    keep,
    machine,
    matmul_rate,
    on_device,
    require_device,
    seconds_of,
    wide_console,
)
from rich.console import Console
from rich.table import Table

GOAL = 0.45  # of the measured rate, on an H100, forward, backward and loss together


def cases(base: Case, varied: dict[str, list[int]]) -> list[Case]:
    """The base, then one value changed at a time."""
    found = [base]
    for key, values in varied.items():
        found += [replace(base, **{key: value}) for value in values if value != getattr(base, key)]
    return found


def measure(case: Case, device: str, repeats: int, options: dict[str, Any]) -> dict[str, Any]:
    """One line of the table. The first step shows the peak of memory, the others the time."""
    step = Step(case, device, **options)
    if device == "cuda":
        step()  # compiles what is to be compiled, which may take more memory than a step
    memory = PeakMemory(device)
    step()
    peak = memory.added()
    seconds = seconds_of(step, device=device, repeats=repeats)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rate = matmul_rate(device, dtype)
    flops = step_flops(case.shape, step.load(), vocab_size=case.vocab_size)
    median, floor = statistics.median(seconds), sum(flops.values()) / rate
    return {
        "case": asdict(case) | {"attention": attention_of(case, device)},
        "num_parameters": step.draft.num_parameters,
        "seconds": seconds,
        "median_seconds": median,
        "tokens_per_second": case.rows * case.length / median,
        "anchors_per_second": int(step.blocks.valid_BA.sum()) / median,
        "peak_bytes_added": peak,
        "flops": flops,
        "matmul_flops_per_second": rate,
        "floor_seconds": floor,
        "share_of_matmul_rate": floor / median,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """One line a case: the last thing printed."""
    best = max(row["share_of_matmul_rate"] for row in result["rows"])
    table = Table(title=f"a training step of the draft, shape {result['shape']}, {result['machine']['name']}")
    columns = (
        "length",
        "anchors",
        "block",
        "vocabulary",
        "ms",
        "tokens/s",
        "anchors/s",
        "peak MiB",
        "floor ms",
        "share",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for row in result["rows"]:
        case = row["case"]
        table.add_row(
            *(str(case[key]) for key in ("length", "anchors", "block_size", "vocab_size")),
            f"{1e3 * row['median_seconds']:.1f}", f"{row['tokens_per_second']:,.0f}",
            f"{row['anchors_per_second']:,.0f}", f"{row['peak_bytes_added'] / 2**20:,.0f}",
            f"{1e3 * row['floor_seconds']:.1f}", f"{100 * row['share_of_matmul_rate']:.0f} %",
        )  # fmt: skip
    console.print(
        f"best share of the measured matrix-product rate: {100 * best:.0f} % (goal on an H100: {100 * GOAL:.0f} %); "
        "peak: what a step adds to weights, optimizer and features",
        soft_wrap=True,
    )
    console.print(table)


def picture(result: dict[str, Any]):
    """Milliseconds of every case, and its floor."""
    figure, (axes,) = canvas(f"training step, shape {result['shape']}, {result['machine']['name']}", width=9)
    keys = ("length", "anchors", "block_size", "vocab_size")
    base = result["rows"][0]["case"]
    changed = [[f"{key} {row['case'][key]}" for key in keys if row["case"][key] != base[key]] for row in result["rows"]]
    names = [" ".join(words) or "base" for words in changed]
    axes.bar(names, [1e3 * row["median_seconds"] for row in result["rows"]], label="measured")
    axes.bar(names, [1e3 * row["floor_seconds"] for row in result["rows"]], label="floor")
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_ylabel("ms per step")
    axes.legend()
    return figure


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="(%(default)s)")
    parser.add_argument("--lengths", type=int, nargs="*", help="tokens of a row; default: the shape's own choice")
    parser.add_argument("--anchors", type=int, nargs="*", help="blocks of a row")
    parser.add_argument("--block-sizes", type=int, nargs="*")
    parser.add_argument("--vocabularies", type=int, nargs="*")
    parser.add_argument("--depth", type=int, help="layers; default: the shape's")
    parser.add_argument("--attention", choices=ATTENTION, help="default: flex on a GPU, dense on a CPU")
    parser.add_argument("--compile", action="store_true", help="the draft by torch.compile, as compile=inductor does")
    parser.add_argument("--checkpoint-layers", action="store_true", help="as activation_checkpointing=true does")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/training_step"), help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, console = parse(arguments), wide_console()
    try:
        require_device(options.device)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    base = replace(SHAPES[options.shape], attention=options.attention)
    base = base if options.depth is None else replace(base, depth=options.depth)
    given = {
        "length": options.lengths, "anchors": options.anchors, "block_size": options.block_sizes,
        "vocab_size": options.vocabularies,
    }  # fmt: skip
    varied = {key: VARIED[options.shape][key] if values is None else values for key, values in given.items()}
    computed = {"compile": options.compile, "checkpoint_layers": options.checkpoint_layers}
    rows = []
    for case in cases(base, varied):
        console.print(f"{case.length} tokens, {case.anchors} anchors, block {case.block_size}, {case.vocab_size} words")
        rows.append(on_device(options.device, measure, case, options.device, options.repeats, computed))
    result = {"machine": machine(options.device), "shape": options.shape, "goal_share": GOAL, **computed, "rows": rows}
    keep(result, picture(result), folder=options.out, name="training_step")
    show(result, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
