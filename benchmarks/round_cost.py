"""What a round of speculative decoding costs in steps of the loop: the acceptance length at which a draft breaks even.

    python benchmarks/round_cost.py [--shape small] [--batches 1 8] [--blocks 1 2 4 8] [--context 256] [--out FOLDER]
    python benchmarks/round_cost.py --device cuda --shape gpt_oss_20b [--layers 6]

Random weights of the true shape: cost depends on sizes alone. t_AR is one step of the key-value-cache loop, t_verify(K)
the target's pass over K tokens, t_draft(K) the draft's proposal with its logits and the extension of its context by K
tokens. A round of K costs (t_draft + t_verify) / t_AR steps, which is the acceptance length that breaks even; tau
tokens a round give a speedup of tau over that. With --layers fewer of the target's layers are built, and the seconds of
its layers are scaled up; its lm_head is timed apart. For mixtures the experts that a pass touches are counted: where
reading weights is what costs, they are the price of verifying K tokens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from instruments import canvas, keep, machine, wide_console
from rich.console import Console
from rich.table import Table
from round_parts import SHAPES, Round, requested_target, target_parser

TAUS = (2, 3, 4, 5)


def measure(parts: Round, *, blocks: list[int], batches: list[int], repeats: int, console: Console) -> list[dict]:
    """One line a batch size and block."""
    rows = []
    for batch_size in batches:
        parts.open(batch_size)
        loop = parts.verify(1, repeats=repeats)
        for block in blocks:
            verify, draft = parts.verify(block, repeats=repeats), parts.draft(block, repeats=repeats)
            cost = (verify["seconds"] + draft["seconds"]) / loop["seconds"]
            console.print(f"batch {batch_size}, K {block}: a round costs {cost:.2f} steps")
            rows.append(
                {
                    "batch_size": batch_size,
                    "block_size": block,
                    "loop": loop,
                    "verify": verify,
                    "draft": draft,
                    "break_even_acceptance": cost,
                    "speedup": {str(tau): tau / cost for tau in TAUS if tau <= block},
                }
            )
    return rows


def show(result: dict[str, Any], console: Console) -> None:
    """One line a batch size and block: the last thing printed."""
    mixture = any(row["verify"]["experts"] for row in result["rows"])
    built, layers = result["layers_built"], result["layers"]
    scaled = "" if built == layers else f"; {built} of {layers} layers built, their seconds scaled"
    console.print(f"shape {result['shape']}, {result['context']} tokens of context, {result['dtype']}{scaled}")
    table = Table(title=f"a round in steps of the loop, {result['machine']['name']}")
    columns = ["batch", "K", "t_AR ms", "t_verify ms", "t_draft ms", "breaks even at"]
    columns += [f"tau {tau}" for tau in TAUS] + (["experts a layer", "of a step's"] if mixture else [])
    for column in columns:
        table.add_column(column, justify="right")
    for row in result["rows"]:
        loop, verify = row["loop"], row["verify"]
        seconds = (loop["seconds"], verify["seconds"], row["draft"]["seconds"])
        cells = [str(row["batch_size"]), str(row["block_size"]), *(f"{1e3 * value:.2f}" for value in seconds)]
        cells.append(f"{row['break_even_acceptance']:.2f}")
        cells += [f"{row['speedup'][str(tau)]:.2f}x" if str(tau) in row["speedup"] else "-" for tau in TAUS]
        if mixture:
            touched, once = verify["experts"]["touched_per_layer"], loop["experts"]["touched_per_layer"]
            cells += [f"{touched:.1f} of {verify['experts']['per_layer']}", f"{touched / once:.1f}x"]
        table.add_row(*cells)
    console.print(table)


def picture(result: dict[str, Any]):
    """Break-even acceptance by block, one line a batch size."""
    figure, (axes,) = canvas(f"a round in steps of the loop, shape {result['shape']}, {result['machine']['name']}")
    for batch_size in sorted({row["batch_size"] for row in result["rows"]}):
        rows = [row for row in result["rows"] if row["batch_size"] == batch_size]
        blocks = [row["block_size"] for row in rows]
        axes.plot(blocks, [row["break_even_acceptance"] for row in rows], marker="o", label=f"batch {batch_size}")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("K, tokens that the target verifies in a round")
    axes.set_ylabel("acceptance length that breaks even")
    axes.legend()
    return figure


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = target_parser(__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="K (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="(%(default)s)")
    parser.add_argument("--context", type=int, default=512, help="tokens before the round (%(default)s)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/round_cost"), help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, console = parse(arguments), wide_console()
    shape = SHAPES[options.shape]
    try:
        target = requested_target(options)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    parts = Round(target, shape, context=options.context, longest_block=max(options.blocks), device=options.device)
    rows = measure(parts, blocks=options.blocks, batches=options.batches, repeats=options.repeats, console=console)
    result = {
        "machine": machine(options.device),
        "shape": options.shape,
        "layers": shape.num_layers,
        "layers_built": target.dims.num_layers,
        "context": options.context,
        "dtype": str(target.dtype).removeprefix("torch."),
        "target_parameters_built": target.num_parameters,
        "draft_parameters": parts.proposer.num_parameters,
        "rows": rows,
    }
    keep(result, picture(result), folder=options.out, name="round_cost")
    show(result, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
