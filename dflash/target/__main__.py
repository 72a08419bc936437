"""``python -m dflash.target probe PATH``: whether a model can be decoded speculatively without loss, check by check."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from dflash.target.attention import FUSED, register_fused
from dflash.target.families import FAMILIES, build_model
from dflash.target.probe import Check
from dflash.target.target import Target

DTYPES = ("float32", "float64", "bfloat16", "float16")


def main(arguments: list[str] | None = None) -> int:
    """0: all checks passed. 1: one failed, or the model was refused, with the reason in a sentence."""
    parser = argparse.ArgumentParser(prog="python -m dflash.target", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "probe", help="check a model, no tokenizer"
    )
    command.add_argument("path", help=f"model folder or hub id, or a family with random weights: {', '.join(FAMILIES)}")
    command.add_argument("--dtype", default="float32", choices=DTYPES, help="float32 proves most (%(default)s)")
    command.add_argument("--device", default="cpu", help="(%(default)s)")
    command.add_argument("--attention", default="eager", help=f"implementation, or {FUSED} (%(default)s)")
    command.add_argument("--length", type=int, default=48, help="tokens of the longest row (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of tokens and random weights (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.length < 24:
            raise ValueError(f"--length={options.length}: must be at least 24; documents and prompts are cut from it")
        target = load(options)
        checks = target.probe(length=options.length, seed=options.seed)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    Console().print(table(checks, f"{target.name}: {target.family}, {options.dtype}, {options.attention} attention"))
    return 0 if all(check.passed for check in checks) else 1


def load(options: argparse.Namespace) -> Target:
    """The target named, without its tokenizer. ValueError where it cannot be loaded or is refused."""
    register_fused()
    dtype = getattr(torch, options.dtype)
    if options.path in FAMILIES and not Path(options.path).exists():
        torch.manual_seed(options.seed)
        model = build_model(FAMILIES[options.path](256))
        model.set_attn_implementation(options.attention)
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                options.path, dtype=dtype, attn_implementation=options.attention
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{options.path} is no family and cannot be loaded as a model ({reason})") from error
    return Target(model.to(options.device, dtype), name=options.path.rstrip("/"))


def table(checks: list[Check], title: str) -> Table:
    """A row for each check: passed or failed, the worst error beside the largest value compared, the error raised."""
    shown = Table(title=title, title_justify="left")
    for heading in ("check", "", "worst error", "of values up to", "note"):
        shown.add_column(heading)
    for check in checks:
        verdict = "[green]passed[/]" if check.passed else "[bold red]failed[/]"
        shown.add_row(check.name, verdict, f"{check.worst:.2g}", f"{check.scale:.3g}", check.note)
    return shown


if __name__ == "__main__":
    sys.exit(main())
