"""Speed of the training data: tokens a second by workers, and the share of a training step that is spent waiting.

    python benchmarks/loader.py [--workers 0 1 2] [--length 4096] [--batch 1] [--step-seconds 0.5] [--out FOLDER]

Chats from the standard library's documented functions, written as JSONL and as Parquet, are mixed, rendered, encoded,
packed and batched by the project's own recipe, streaming, with one lane a worker. Measured for each number of workers:
(1) how fast batches come when nothing else is done, behind the first batch; (2) with a step of --step-seconds between
them, spent asleep (a GPU computes, the processors are free) or with --busy in products of matrices (training on the
processors themselves), the share of the time that the loop waits for its next batch. Goal: below 2 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader

from dflash.assemble.data import MixtureData
from dflash.data.corpus import exercises, read_corpus
from dflash.data.mixture import FileSource
from dflash.data.stream import BatchStream, IndexSampler
from dflash.target.reading import Reading, read_reading
from dflash.types import TokenBatch

GOAL = 0.02


@dataclass(frozen=True)
class Plan:
    """What is measured; lengths in tokens."""

    length: int
    batch: int
    batches: int
    step_seconds: float
    steps: int
    busy: bool
    buffer_rows: int
    seed: int = 0


def write_sets(folder: Path) -> dict[str, FileSource]:
    """Two data sets of the same kind of chats, in both formats."""
    chats = [{"messages": e.messages} for file in read_corpus() for e in exercises(file)]
    half = len(chats) // 2
    lines = "".join(json.dumps(row) + "\n" for row in chats[:half])
    (folder / "chats.jsonl").write_text(lines, encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chats[half:]), folder / "chats.parquet")
    return {
        "jsonl": FileSource(path=str(folder / "chats.jsonl"), weight=2),
        "parquet": FileSource(path=str(folder / "chats.parquet"), weight=1),
    }


def open_loader(sources: dict[str, FileSource], reading: Reading, plan: Plan, *, workers: int) -> DataLoader:
    """The loader of a training run on one device, as the data module makes it."""
    recipe = MixtureData(
        sources=sources,
        seed=plan.seed,
        on_bad="skip",
        length=plan.length,
        batch_size=plan.batch,
        num_workers=workers,
        lanes=max(1, workers),
        buffer_rows=plan.buffer_rows,
    )
    pad = reading.tokenizer.pad_token_id
    documents = recipe.open(reading, lambda done, total: None)
    module = recipe.module(documents, pad_id=pad, seed=plan.seed, accumulate=1)
    module.setup()
    stream = BatchStream(module.rows, length=plan.length, batch_size=plan.batch, pad_id=pad)
    return DataLoader(
        stream, batch_size=None, sampler=IndexSampler(lambda: 0), collate_fn=as_it_is, num_workers=workers
    )


def as_it_is(batch):
    return batch


def throughput(batches: Iterator[tuple[int, TokenBatch]], plan: Plan) -> dict[str, float]:
    """Tokens a second over ``plan.batches`` batches behind the first."""
    started = time.perf_counter()
    next(batches)
    first = time.perf_counter()
    found = [batch for _, batch in islice(batches, plan.batches)]
    seconds = time.perf_counter() - first
    tokens = sum(batch.num_tokens for batch in found)
    return {
        "first_batch_seconds": first - started,
        "tokens_per_second": tokens / seconds,
        "supervised_tokens_per_second": sum(int(batch.supervised_BS.sum()) for batch in found) / seconds,
        "fill": tokens / (len(found) * plan.batch * plan.length),
    }


def waiting(batches: Iterator[tuple[int, TokenBatch]], step: Callable[[], None], plan: Plan) -> dict[str, float]:
    """The share of ``plan.steps`` steps spent waiting for the batch, and the longest wait."""
    next(batches)
    waits, steps = [], []
    for _ in range(plan.steps):
        step()
        asked = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - asked)
        steps.append(plan.step_seconds)
    return {
        "waiting_share": sum(waits) / (sum(waits) + sum(steps)),
        "median_wait_seconds": statistics.median(waits),
        "longest_wait_seconds": max(waits),
    }


def make_step(plan: Plan) -> Callable[[], None]:
    """A training step of ``plan.step_seconds``: asleep, or multiplying matrices."""
    if not plan.busy:
        return lambda: time.sleep(plan.step_seconds)
    matrix = torch.randn(512, 512)

    def multiply() -> None:
        until = time.perf_counter() + plan.step_seconds
        while time.perf_counter() < until:
            matrix @ matrix

    return multiply


def show(result: dict, console: Console) -> None:
    plan = result["plan"]
    needed = plan["batch"] * plan["length"] / plan["step_seconds"]
    kind = "multiplying" if plan["busy"] else "asleep"
    table = Table(
        title=f"{plan['batch']} x {plan['length']} tokens a batch; a step of {plan['step_seconds']:g} s, {kind}, "
        f"takes {needed:,.0f} tokens/s"
    )
    for column in ("workers = lanes", "tokens/s", "supervised/s", "x needed", "rows filled", "waiting", "longest wait"):
        table.add_column(column, justify="right")
    for workers, row in result["workers"].items():
        share = row["waiting_share"]
        table.add_row(
            workers,
            f"{row['tokens_per_second']:,.0f}",
            f"{row['supervised_tokens_per_second']:,.0f}",
            f"{row['tokens_per_second'] / needed:.1f}",
            f"{100 * row['fill']:.1f} %",
            f"[{'green' if share < GOAL else 'red'}]{100 * share:.2f} %[/]",
            f"{1000 * row['longest_wait_seconds']:.0f} ms",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", default="assets/tiny_gpt_oss", help="model folder, for its tokenizer (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--length", type=int, default=4096, help="tokens a row (%(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="rows a batch (%(default)s)")
    parser.add_argument("--batches", type=int, default=40, help="for the throughput (%(default)s)")
    parser.add_argument("--step-seconds", type=float, default=0.5, help="of a training step (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="for the waiting (%(default)s)")
    parser.add_argument("--busy", action="store_true", help="steps compute instead of sleeping")
    parser.add_argument("--buffer-rows", type=int, default=32, help="read before the first batch (%(default)s)")
    parser.add_argument("--out", default="outputs/benchmarks/loader", help="folder of loader.json (%(default)s)")
    options = parser.parse_args()
    plan = Plan(
        length=options.length,
        batch=options.batch,
        batches=options.batches,
        step_seconds=options.step_seconds,
        steps=options.steps,
        busy=options.busy,
        buffer_rows=options.buffer_rows,
    )
    console, reading = Console(), read_reading(options.target)
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sets(Path(folder))
        for workers in track(options.workers, "workers", console=console):
            fast = throughput(iter(open_loader(sources, reading, plan, workers=workers)), plan)
            slow = waiting(iter(open_loader(sources, reading, plan, workers=workers)), make_step(plan), plan)
            measured[str(workers)] = fast | slow
    threads = {"torch_threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {"plan": asdict(plan), "workers": measured, **threads}
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "loader.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result, console)


if __name__ == "__main__":
    main()
