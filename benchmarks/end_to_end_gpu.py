"""A target, its draft and what the draft buys, from nothing: one GPU, no network, about ten minutes.

    python benchmarks/end_to_end_gpu.py [--minutes 10] [--dtype float32] [--out FOLDER]
    python benchmarks/end_to_end_gpu.py --small          the same path on a CPU at toy sizes

The project's own tasks in turn, each with a share of the time: pre-training of a gpt-oss target of 100 M parameters on
the source text that is found on this machine, regeneration by it, distillation, and real decoding of held-out prompts
at two lengths, greedy and at temperature 1, with blocks of three sizes. Steps and prompts are what fits: each phase
measures its own rate first. Conditions that no longer fit are named as left out, never shortened.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from end_to_end_phases import SHARES, Workshop
from instruments import canvas, keep, machine, require_device, wide_console
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Plan:
    """Sizes of a run. ``architecture``: arguments of gpt_oss_config. ``lengths``: (new tokens, batch size, prompts)."""

    device: str
    trainer: str
    architecture: dict[str, int]
    vocab_size: int
    corpus_mebibytes: float
    pretrain_rows: int
    pretrain_length: int
    max_pretrain_steps: int
    target_lr: float
    regenerate_batch: int
    max_prompts: int
    prompt_tokens: tuple[int, int]
    chat_fraction: float
    response_tokens: int
    validation_prompts: int
    draft: tuple[str, ...]
    train_block_size: int
    distil_rows: int
    distil_length: int
    num_anchors: int
    max_distil_steps: int
    lengths: tuple[tuple[int, int, int], ...]
    block_sizes: tuple[int, ...]


FULL = Plan(
    device="cuda",
    trainer="gpu",
    architecture={
        "num_layers": 12, "hidden_size": 512, "intermediate_size": 512, "num_experts": 8, "num_heads": 8,
        "num_kv_heads": 2,
    },
    vocab_size=16384,
    corpus_mebibytes=32,
    pretrain_rows=64,
    pretrain_length=512,
    max_pretrain_steps=6000,
    target_lr=2e-3,
    regenerate_batch=512,
    max_prompts=16384,
    prompt_tokens=(32, 96),
    chat_fraction=0.25,
    response_tokens=256,
    validation_prompts=32,
    draft=("draft=depth3", "draft.mlp_ratio=3.0", "draft.taps.count=5"),
    train_block_size=16,
    distil_rows=16,
    distil_length=512,
    num_anchors=128,
    max_distil_steps=6000,
    lengths=((256, 1, 6), (2048, 8, 8)),
    block_sizes=(8, 16, 4),
)  # fmt: skip
SMALL = Plan(
    device="cpu",
    trainer="cpu",
    architecture={
        "num_layers": 4, "hidden_size": 32, "intermediate_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8,
        "sliding_window": 16, "pretrained_length": 64,
    },
    vocab_size=512,
    corpus_mebibytes=0.15,
    pretrain_rows=4,
    pretrain_length=64,
    max_pretrain_steps=20,
    target_lr=4e-3,
    regenerate_batch=16,
    max_prompts=16,
    prompt_tokens=(8, 24),
    chat_fraction=0.0,
    response_tokens=24,
    validation_prompts=2,
    draft=("draft=depth1", "draft.mlp_ratio=2.0", "draft.taps.count=1"),
    train_block_size=16,
    distil_rows=2,
    distil_length=96,
    num_anchors=8,
    max_distil_steps=12,
    lengths=((16, 1, 2), (48, 2, 2)),
    block_sizes=(8, 16, 4),
)  # fmt: skip


def run(
    plan: Plan, *, minutes: float, dtype: str, folder: Path, console: Console, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """All phases; what is kept as JSON. overrides: of train.py, for the draft."""
    shop = Workshop(
        plan, folder=folder, dtype=dtype, seconds=60 * minutes, quiet=plan is SMALL, overrides=tuple(overrides)
    )
    started = time.perf_counter()
    corpus = shop.gather()
    target = shop.pretrain()
    console.rule(f"target: {target['held_out_bits_per_byte']:.3f} bits per byte")
    prompts = shop.plan_regeneration()
    draft = shop.distil(prompts)
    console.rule(f"draft: {draft['steps']} steps")
    rows, left_out = shop.measure(deadline=started + 60 * minutes)
    return {
        "machine": machine(plan.device),
        "minutes_allowed": minutes,
        "shares": SHARES,
        "seconds": {**shop.seconds, "in all": time.perf_counter() - started},
        "dtype": dtype,
        "overrides": list(overrides),
        "plan": asdict(plan),
        "corpus": corpus,
        "target": target,
        "draft": draft,
        "rows": rows,
        "left_out": left_out,
    }


def show(result: dict[str, Any], console: Console) -> None:
    """What was left out, then one line a condition: the last thing printed."""
    for condition in result["left_out"]:
        console.print(f"left out: {condition}", soft_wrap=True)
    target, seconds = result["target"], result["seconds"]
    console.print(
        f"target of {target['num_parameters'] / 1e6:.1f} M parameters, {target['held_out_bits_per_byte']:.3f} bits per "
        f"byte after {target['steps']} steps; draft after {result['draft']['steps']} steps on "
        f"{result['draft']['num_prompts']} responses; {result['dtype']} on {result['machine']['name']}; "
        f"{seconds['in all'] / 60:.1f} minutes",
        soft_wrap=True,
    )
    table = Table(title="a draft against the key-value-cache loop of its target")
    for column in (
        "tokens", "block", "T", "batch", "acceptance (95 %)", "loop tok/s", "draft tok/s", "speedup", "equal",
        "chain walk", "4-grams repeated",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in result["rows"]:
        (low, high), equal, walk = row["acceptance_interval"], row["equal"], row["chain_walk"]
        table.add_row(
            str(row["new_tokens"]), str(row["block_size"]), f"{row['temperature']:g}", str(row["batch_size"]),
            f"{row['acceptance']:.2f} ({low:.2f}-{high:.2f})", f"{row['loop_tokens_per_second']:.0f}",
            f"{row['draft_tokens_per_second']:.0f}", f"{row['speedup']:.2f}x", f"{equal['equal']} of {equal['total']}",
            f"{walk['equal']} of {walk['total']}" if walk else "-", f"{100 * row['repeated_4gram_share']:.0f} %",
        )  # fmt: skip
    console.print(table)


def picture(result: dict[str, Any]):
    """Acceptance and speedup of every condition."""
    figure, (left, right) = canvas(f"draft against loop, {result['machine']['name']}", columns=2, width=10)
    names = [f"{r['new_tokens']} tokens, K {r['block_size']}, T {r['temperature']:g}" for r in result["rows"]][::-1]
    for axes, key, label in ((left, "acceptance", "acceptance length"), (right, "speedup", "x the loop")):
        bars = axes.barh(names, [row[key] for row in result["rows"]][::-1])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.set_xlabel(label)
    right.set_yticklabels([])
    return figure


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true", help="toy sizes on the CPU: shows that the path works")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for everything (%(default)s)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the target (%(default)s)"
    )
    parser.add_argument(
        "--override", nargs="+", default=[], metavar="KEY=VALUE",
        help="of train.py, for the draft: attention=two_pieces target.experts=eager optimizer.lr=1e-3",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/end_to_end_gpu"), help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    plan, console = SMALL if options.small else FULL, wide_console()
    try:
        require_device(plan.device, otherwise="--small")
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    work = options.out / "work"
    shutil.rmtree(work, ignore_errors=True)  # an earlier run's responses and checkpoints are not this one's
    result = run(
        plan, minutes=options.minutes, dtype=options.dtype, folder=work, console=console, overrides=options.override
    )
    keep(json.loads(json.dumps(result)), picture(result), folder=options.out, name="end_to_end_gpu")
    show(result, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
