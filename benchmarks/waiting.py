"""What full batches and prompts read by length are worth: decoders over many prompts, in turn.

    python benchmarks/waiting.py [--checkpoint latest] [--prompts 64] [--batch-size 16] [--tokens 96] [--repeats 3]
                                 [--device cuda]

Batch after batch, each until its last prompt is done, against waiting prompts that take the places of those that are
done; and prompts read in one padded pass against passes of like lengths. Greedy, the repository's held-out prompts, the
loop and the draft; every way must give the same tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from instruments import require_device
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dflash.allocator import keep_freed_memory
from dflash.data.prompts import read_prompts
from dflash.decode import run
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.replay import CALLS_TO_SETTLE, recording_at_once
from dflash.target.load import local_target
from dflash.training.checkpoint import find_checkpoint, load_draft

WAYS = ("batch after batch, one padded pass", "batch after batch", "waiting prompts")


@contextmanager
def one_padded_pass() -> Iterator[None]:
    """Inside, prompts of all lengths are read together."""
    with patch.dict(run.READ_TOKENS, dict.fromkeys(("cpu", "cuda"), sys.maxsize)):
        yield


def ways(decoder, prompts: list[list[int]], *, batch_size: int, **limits) -> dict[str, Callable[[], list]]:
    """Name -> a call that decodes all prompts and gives their tokens."""

    def batches() -> list:
        parts = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
        return [trace.tokens for part in parts for trace in decoder.generate(part, **limits)[0]]

    def padded() -> list:
        with one_padded_pass():
            return batches()

    def waiting() -> list:
        return [trace.tokens for trace in decoder.generate(prompts, batch_size=batch_size, **limits)[0]]

    return dict(zip(WAYS, (padded, batches, waiting), strict=True))


def measure(options: argparse.Namespace, console: Console) -> list[dict]:
    require_device(options.device, otherwise="--device cpu")
    keep_freed_memory()
    loaded = local_target(path=options.target, attention="fused", experts="dense", device=options.device, replay=True)()
    draft = load_draft(find_checkpoint(options.checkpoint), loaded)
    prompts = read_prompts("assets/prompts/held_out.jsonl", loaded.tokenizer, count=options.prompts)
    ids = [list(prompt.ids) for prompt in prompts]
    limits = {"batch_size": options.batch_size, "max_new_tokens": options.tokens}
    calls = {
        (name, way): call
        for name, decoder in (
            ("loop", AutoregressiveDecoder(loaded.target)),
            ("draft", SpeculativeDecoder(loaded.target, draft)),
        )
        for way, call in ways(decoder, ids, stop_token_ids=loaded.stop_token_ids, **limits).items()
    }
    with recording_at_once():
        for call in track(calls.values(), "warm-up", console=console):
            for _ in range(CALLS_TO_SETTLE):
                call()
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    outputs = {}
    for _ in track(range(options.repeats), "repeats", console=console):
        for key, call in calls.items():
            started = time.perf_counter()
            outputs[key] = call()
            seconds[key].append(time.perf_counter() - started)
    first = next(iter(outputs.values()))
    return [
        {
            "decoder": name,
            "way": way,
            "seconds": seconds[name, way],
            "tokens_per_second": sum(map(len, output)) / statistics.median(seconds[name, way]),
            "ratio": statistics.median(seconds[name, WAYS[0]]) / statistics.median(seconds[name, way]),
            "equal": sum(a == b for a, b in zip(output, first, strict=True)),
            "of": len(first),
        }
        for (name, way), output in outputs.items()
    ]


def show(rows: list[dict], console: Console) -> None:
    table = Table(title="decoding many prompts")
    for column in ("decoder", "prompts", "tok/s", "x the first way", "equal"):
        table.add_column(column, justify="left" if column in ("decoder", "prompts") else "right")
    for row in rows:
        equal = f"{row['equal']} of {row['of']}"
        table.add_row(row["decoder"], row["way"], f"{row['tokens_per_second']:.0f}", f"{row['ratio']:.2f}", equal)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", default="outputs/latest", help="run folder or checkpoint (%(default)s)")
    parser.add_argument("--target", default="assets/tiny_gpt_oss", help="model folder (%(default)s)")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="outputs/benchmarks/waiting", help="folder of waiting.json (%(default)s)")
    options, console = parser.parse_args(arguments), Console()
    try:
        rows = measure(options, console)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "waiting.json").write_text(json.dumps(rows, indent=2))
    show(rows, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
