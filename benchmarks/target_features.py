"""What training pays for the target's features, by the way attention and experts are computed: time, memory, agreement.

    python benchmarks/target_features.py [--shape small] [--lengths 256 1024] [--repeats 5] [--out FOLDER]
    python benchmarks/target_features.py --device cuda --shape gpt_oss_20b --layers 8

A gpt-oss target with random weights of the true shape reads packed rows of several documents, up to its deepest tap, as
an online training step has it do. Every way reads the same rows with the same weights; ``apart`` is how far its
features are from those of the first way that ran, as a share of their own size. A way that does not run here is named
with the reason.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from instruments import PeakMemory, canvas, keep, machine, seconds_of, wide_console
from rich.console import Console
from rich.table import Table
from round_parts import SHAPES, requested_target, target_parser

from dflash.draft.taps import uniform_taps
from dflash.target.experts import register_dense
from dflash.target.flex import register_flex
from dflash.target.target import Target
from dflash.types import TokenBatch

# target.attention, target.experts: the two of the published code first, then what may replace them.
WAYS = {
    "cpu": (("eager", "grouped_mm"), ("fused", "grouped_mm"), ("fused", "dense")),
    "cuda": (
        ("eager", "grouped_mm"),
        ("flex", "grouped_mm"),
        ("fused", "grouped_mm"),
        ("flex_attention", "grouped_mm"),
        ("fused", "eager"),
    ),
}


def packed_rows(length: int, *, num_documents: int, vocab_size: int, device: str) -> TokenBatch:
    """One row of ``length`` random tokens, documents of equal length behind each other."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size - 1, (1, length), generator=generator)
    at = torch.arange(length)[None]
    each = -(-length // num_documents)
    batch = TokenBatch(
        ids_BS=ids,
        documents_BS=at // each,
        positions_BS=at % each,
        supervised_BS=torch.ones_like(ids, dtype=torch.bool),
    )
    return batch.to(device)


@torch.no_grad()
def measure(
    target: Target, way: tuple[str, str], batch: TokenBatch, taps: tuple[int, ...], device: str, repeats: int
) -> tuple[dict[str, Any], torch.Tensor]:
    """One line of the table, and the features."""
    attention, experts = way
    target.model.set_attn_implementation(attention)
    target.model.set_experts_implementation(experts)
    found = target.features(batch, taps).taps_BSTH  # compiles what is to be compiled
    memory = PeakMemory(device)
    target.features(batch, taps)
    peak = memory.added() if device == "cuda" else None  # a processor's would take a process for each
    seconds = seconds_of(lambda: target.features(batch, taps), device=device, repeats=repeats, warm_up=0)
    best = min(seconds)
    line = {
        "attention": attention,
        "experts": experts,
        "length": batch.ids_BS.shape[1],
        "seconds": seconds,
        "tokens_per_second": batch.ids_BS.numel() / best,
        "peak_bytes": peak,
    }
    return line, found


def compare(target: Target, lengths: list[int], options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """All ways at every length."""
    taps = uniform_taps(count=SHAPES[options.shape].num_taps)(target.dims.num_layers)
    rows = []
    for length in lengths:
        batch = packed_rows(
            length, num_documents=options.documents, vocab_size=target.dims.vocab_size, device=options.device
        )
        reference = None
        for way in WAYS[options.device]:
            console.print(f"{length} tokens, attention {way[0]}, experts {way[1]}", highlight=False)
            try:
                line, found = measure(target, way, batch, taps, options.device, options.repeats)
            except (RuntimeError, ValueError, ImportError) as error:
                reason = str(error).strip().splitlines()[0]
                rows.append({"attention": way[0], "experts": way[1], "length": length, "error": reason})
                continue
            reference = found if reference is None else reference
            line["apart"] = ((found - reference).float().norm() / reference.float().norm()).item()
            rows.append(line)
    return rows


def show(result: dict[str, Any], console: Console) -> None:
    """What did not run, then the table: the last thing printed."""
    for row in result["rows"]:
        if "error" in row:
            console.print(f"attention {row['attention']}, experts {row['experts']}: {row['error']}", soft_wrap=True)
    table = Table(title=f"features of {result['layers']} layers, shape {result['shape']}, {result['machine']['name']}")
    for column in ("length", "attention", "experts", "ms", "tokens/s", "peak MiB", "apart"):
        table.add_column(column, justify="left" if column in ("attention", "experts") else "right")
    for row in result["rows"]:
        if "error" not in row:
            peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
            table.add_row(
                str(row["length"]), row["attention"], row["experts"], f"{1e3 * min(row['seconds']):.1f}",
                f"{row['tokens_per_second']:,.0f}", peak, f"{row['apart']:.1e}",
            )  # fmt: skip
    console.print(table)


def picture(result: dict[str, Any]):
    """Tokens per second of every way."""
    figure, (axes,) = canvas(f"features of the target, shape {result['shape']}, {result['machine']['name']}")
    rows = [row for row in result["rows"] if "error" not in row][::-1]
    names = [f"{row['length']} tokens, {row['attention']}, {row['experts']}" for row in rows]
    bars = axes.barh(names, [row["tokens_per_second"] for row in rows])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel("tokens per second")
    return figure


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = target_parser(__doc__.split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of a row; default: 256 1024, on a GPU 2048 4096")
    parser.add_argument("--documents", type=int, default=4, help="of a row (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/target_features"), help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, console = parse(arguments), wide_console()
    lengths = options.lengths or ([256, 1024] if options.device == "cpu" else [2048, 4096])
    try:
        target = requested_target(options)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    register_dense()
    register_flex()
    rows = compare(target, lengths, options, console)
    result = {
        "machine": machine(options.device),
        "shape": options.shape,
        "layers": target.dims.num_layers,
        "dtype": str(target.dtype).removeprefix("torch."),
        "documents": options.documents,
        "rows": rows,
    }
    keep(result, picture(result), folder=options.out, name="target_features")
    show(result, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
