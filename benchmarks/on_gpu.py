"""All that a GPU has to show, in one call and a given time: for a machine that is lent for minutes, without network.

    python benchmarks/on_gpu.py [--minutes 14] [--parts tests training_step ...] [--out FOLDER]
    python benchmarks/on_gpu.py --small          the same parts on a CPU at toy sizes

Parts run one after the other, each in a process of its own and within its share of what time is left; one that fails
or runs out of time does not stop the others. Each leaves its log, figures and picture in a folder of its name; the tail
of every log is printed again at the end, before a table of what ran.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from instruments import ROOT, machine, require_device, wide_console
from rich.console import Console
from rich.table import Table

from dflash.evaluation.report import write_whole

BENCHMARKS = Path(__file__).resolve().parent
TAIL = 40  # lines of a log that are worth reading once it is over


@dataclass(frozen=True)
class Part:
    """``command``: behind the interpreter; {out} is the part's folder in {root}, {minutes} its time. ``weight``: its
    share of the time that is left when it starts, against those behind it."""

    command: tuple[str, ...]
    small: tuple[str, ...]
    weight: float


def _script(name: str, *arguments: str) -> tuple[str, ...]:
    return str(BENCHMARKS / f"{name}.py"), *arguments


ON_GPU = ("draft/test_recompute.py", "replay/test_graphs.py", "decode/test_graphed.py")  # have tests that need one
PARTS = {
    "tests": Part(
        ("-m", "pytest", *(str(ROOT / "tests" / path) for path in ON_GPU)),
        ("-m", "pytest", "-x", str(ROOT / "tests/test_argmax.py")),
        weight=1,
    ),
    "attention": Part(
        _script("attention", "--device", "cuda", "--json", "{out}/attention.json"),
        _script("attention", "--cases", "64x4", "--repeats", "1", "--json", "{out}/attention.json"),
        weight=1,
    ),
    "target_features": Part(
        _script("target_features", "--device", "cuda", "--shape", "gpt_oss_20b", "--layers", "8", "--out", "{out}"),
        _script("target_features", "--lengths", "32", "--repeats", "1", "--out", "{out}"),
        weight=1,
    ),
    "training_step": Part(
        _script("training_step", "--device", "cuda", "--shape", "gpt_oss_20b", "--repeats", "3", "--out", "{out}"),
        _script(
            "training_step", "--lengths", "64", "--anchors", "4", "--block-sizes", "4", "--vocabularies", "256",
            "--repeats", "1", "--out", "{out}",
        ),
        weight=2,
    ),
    "round_cost": Part(
        _script(
            "round_cost", "--device", "cuda", "--shape", "gpt_oss_20b", "--blocks", "1", "4", "8", "16", "--batches",
            "1", "8", "32", "--out", "{out}",
        ),
        _script(
            "round_cost", "--blocks", "1", "4", "--batches", "1", "--repeats", "1", "--context", "16", "--out", "{out}",
        ),
        weight=2,
    ),
    "end_to_end": Part(
        _script("end_to_end_gpu", "--minutes", "{minutes}", "--out", "{out}"),
        _script("end_to_end_gpu", "--small", "--minutes", "{minutes}", "--out", "{out}"),
        weight=8,
    ),
    # what end_to_end has made: decoding from CUDA graphs and without, beside transformers' own
    "decode": Part(
        _script(
            "decode", "--device", "cuda", "--target", "{root}/end_to_end/work/target/target", "--checkpoint",
            "{root}/end_to_end/work/draft", "--repeats", "2", "--lengths", "128", "512", "2048", "--out", "{out}",
        ),
        _script(
            "decode", "--target", "{root}/end_to_end/work/target/target", "--checkpoint",
            "{root}/end_to_end/work/draft", "--prompts", "2", "--tokens", "8", "--repeats", "1", "--lengths", "16",
            "--out", "{out}",
        ),
        weight=1,
    ),
}  # fmt: skip


@dataclass
class Outcome:
    """How a part ended. code: its exit code, None where its time ran out."""

    name: str
    code: int | None
    seconds: float
    tail: list[str]


def run(names: Sequence[str], *, minutes: float, small: bool, folder: Path, console: Console) -> list[Outcome]:
    """These parts in turn, within ``minutes``."""
    deadline = time.perf_counter() + 60 * minutes
    outcomes = []
    for i, name in enumerate(names):
        left = deadline - time.perf_counter()
        share = PARTS[name].weight / sum(PARTS[other].weight for other in names[i:])
        outcomes.append(_run(name, seconds=max(1.0, left * share), small=small, folder=folder / name, console=console))
    return outcomes


def _run(name: str, *, seconds: float, small: bool, folder: Path, console: Console) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    part, log = PARTS[name], folder / "log.txt"
    # A part that keeps its own time is asked to be done a little earlier than it is stopped.
    filled = {"out": folder, "root": folder.parent, "minutes": f"{0.9 * seconds / 60:.2f}"}
    command = [sys.executable, *(word.format(**filled) for word in (part.small if small else part.command))]
    console.print(f"{name}: at most {seconds:.0f} s", highlight=False)
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=stream, stderr=stream, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    return Outcome(name, code, time.perf_counter() - started, tail)


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """The end of every log, then one line a part: the last thing printed."""
    for outcome in outcomes:
        console.rule(outcome.name)
        console.print("\n".join(outcome.tail), markup=False, highlight=False, soft_wrap=True)
    table = Table(title="what ran")
    table.add_column("part")
    table.add_column("end")
    table.add_column("seconds", justify="right")
    for outcome in outcomes:
        end = "out of time" if outcome.code is None else "done" if outcome.code == 0 else f"exit code {outcome.code}"
        table.add_row(outcome.name, end, f"{outcome.seconds:.0f}")
    console.print(table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=14.0, help="time for everything (%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="which, in this order")
    parser.add_argument("--small", action="store_true", help="toy sizes on the CPU: shows that the path works")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/on_gpu"), help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, console = parse(arguments), wide_console()
    device = "cpu" if options.small else "cuda"
    try:
        require_device(device, otherwise="--small")
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    folder = options.out.resolve()
    outcomes = run(options.parts, minutes=options.minutes, small=options.small, folder=folder, console=console)
    result = {"machine": machine(device), "minutes": options.minutes, "parts": [asdict(o) for o in outcomes]}
    write_whole(folder / "on_gpu.json", json.dumps(result, indent=2) + "\n")
    show(outcomes, console)
    return int(any(outcome.code != 0 for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
