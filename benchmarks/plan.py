"""A plan's memory against a real run's: is ``plan=true`` to be believed?

    python benchmarks/plan.py [--json PATH] [--cases weights activations logits scores] [--keep-freed]

Every case is planned, then trained for two steps on a processor, in a process forked for it: the plan's peak stands
beside the growth of the resident set (its high-water mark, reset when training begins) over what the process held
before the target was made. Cases are chosen so that one part dominates each, at some hundred megabytes. As train.py
runs them, freed memory stays with the process (``dflash.allocator``) under --keep-freed; without it the allocator's
own habits are left as they are.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dflash.allocator import keep_freed_memory
from dflash.assemble.plan import UNKNOWN, make_plan
from dflash.assemble.train import make_module, train_parts, untied_module
from dflash.compose import read_settings
from dflash.data.documents import Document
from dflash.data.modules import DistillationDataModule

MIB = 2**20
COMMON = ("experiment=smoke", "features=online", "steps=2")
CASES = {
    "weights": ("draft.mlp_ratio=16384", "optimizer=adamw", "num_anchors=4", "data.batch_size=1"),
    "activations": ("draft.mlp_ratio=128", "draft.depth=2", "num_anchors=256", "data.length=1024", "block_size=8"),
    "logits": ("target.vocab_size=65536", "num_anchors=64", "objective.chunk_blocks=64", "block_size=8"),
    "scores": ("data.length=2048", "data.batch_size=2", "num_anchors=16"),
}


@dataclass(frozen=True)
class Comparison:
    """MiB of one case. parts: the plan's, at its peak."""

    case: str
    planned: float
    measured: float
    parts: dict[str, float]

    @property
    def error(self) -> float:
        """planned / measured - 1."""
        return self.planned / self.measured - 1


def compare(case: str, *, keep_freed: bool = False) -> Comparison:
    """Plan a case and run it."""
    settings = read_settings("train", [*COMMON, *CASES[case]])
    plan = make_plan(settings, train_parts(settings), rates=UNKNOWN, module_of=untied_module)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_growth, args=(settings, keep_freed, sender))
    process.start()
    sender.close()
    measured = receiver.recv()
    process.join()
    parts = {name: size / MIB for name, size in plan.parts.items()}
    return Comparison(case, plan.peak_bytes / MIB, measured / MIB, parts)


def _send_growth(settings: dict, keep_freed: bool, sender) -> None:
    torch.set_num_threads(1)  # what a fork can be trusted with
    if keep_freed:
        keep_freed_memory()
    small = read_settings("train", [*COMMON, "prompts.count=1"])
    _train(small)  # libraries set themselves up
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    _train(settings)
    sender.send(_status("VmHWM") - before)


def _train(settings: dict) -> None:
    """Two steps of the run, on rows of supervised noise."""
    parts = train_parts(settings)
    loaded = parts["target"]()
    length, batch_size = settings["data"]["length"], settings["data"]["batch_size"]
    rng = np.random.default_rng(0)

    def documents() -> list[Document]:
        ids = rng.integers(0, 256, (2 * batch_size, length), dtype=np.int32)
        return [Document(row, np.ones(length, dtype=bool)) for row in ids]

    data = DistillationDataModule(documents, length=length, batch_size=batch_size, pad_id=0, seed=0)
    module = make_module(settings, parts, loaded)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, precision=settings["trainer"]["precision"],
    )  # fmt: skip
    trainer.fit(module, data)


def _status(key: str) -> int:
    """Bytes of one line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(f"/proc/self/status has no {key}: this benchmark needs Linux")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--keep-freed", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [compare(case, keep_freed=options.keep_freed) for case in options.cases]
    table = Table("case", "planned MiB", "measured MiB", "error", "largest part of the plan")
    for result in results:
        largest = max(result.parts, key=result.parts.get)
        numbers = f"{result.planned:,.0f}", f"{result.measured:,.0f}", f"{result.error:+.1%}"
        table.add_row(result.case, *numbers, f"{largest}, {result.parts[largest]:,.0f} MiB")
    Console().print(table)
    if options.json is not None:
        rows = [asdict(result) | {"error": result.error} for result in results]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
