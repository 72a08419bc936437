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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from decode import Contender, Prompts, Tokens, load, ours, race, race_parser
from rich.console import Console
from rich.table import Table

from dflash.decode import run
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder

WAYS = ("batch after batch, one padded pass", "batch after batch", "waiting prompts")


@contextmanager
def one_padded_pass() -> Iterator[None]:
    """Inside, prompts of all lengths are read together."""
    with patch.dict(run.READ_TOKENS, dict.fromkeys(("cpu", "cuda"), sys.maxsize)):
        yield


def ways(decoder, *, batch_size: int, **limits) -> dict[str, Contender]:
    """Name -> contender."""
    waiting = ours(decoder, batch_size=batch_size, **limits)

    def batches(prompts: Prompts) -> tuple[Tokens, float]:
        parts = [waiting(prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)]
        return [tokens for found, _ in parts for tokens in found], sum(seconds for _, seconds in parts)

    def padded(prompts: Prompts) -> tuple[Tokens, float]:
        with one_padded_pass():
            return batches(prompts)

    return dict(zip(WAYS, (padded, batches, waiting), strict=True))


def measure(options: argparse.Namespace, console: Console) -> dict[str, dict]:
    loaded, _, draft, ids = load(options)
    limits = {"batch_size": options.batch_size, "tokens": options.tokens, "stops": loaded.stop_token_ids}
    decoders = {"loop": AutoregressiveDecoder(loaded.target), "draft": SpeculativeDecoder(loaded.target, draft)}
    field = {
        f"{name}: {way}": contender
        for name, decoder in decoders.items()
        for way, contender in ways(decoder, **limits).items()
    }
    raced = race(field, ids, repeats=options.repeats, console=console)
    for name in decoders:
        first = raced[f"{name}: {WAYS[0]}"]["tokens_per_second"]
        for way in WAYS:
            raced[f"{name}: {way}"]["ratio"] = raced[f"{name}: {way}"]["tokens_per_second"] / first
    return raced


def show(raced: dict[str, dict], console: Console) -> None:
    table = Table(title="decoding many prompts")
    for column in ("decoder: prompts", "tok/s", "x the first way", "equal"):
        table.add_column(column, justify="left" if column == "decoder: prompts" else "right")
    for name, row in raced.items():
        equal = f"{row['equal']} of {row['of']}"
        table.add_row(name, f"{row['tokens_per_second']:.0f}", f"{row['ratio']:.2f}", equal)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = race_parser(__doc__.split("\n")[0], prompts=64, name="waiting")
    parser.add_argument("--batch-size", type=int, default=16)
    options, console = parser.parse_args(arguments), Console()
    try:
        raced = measure(options, console)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "waiting.json").write_text(json.dumps(raced, indent=2))
    show(raced, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
