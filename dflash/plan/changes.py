"""What could be changed where a run does not fit, the cheapest first: what leaves the result as it is comes first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dflash.check import select
from dflash.plan.plan import GIB, Plan

NOTEWORTHY = 0.01  # share of the peak; less is not worth a line


@dataclass(frozen=True)
class Change:
    """updates: dotted key -> new value, as on the command line. cost: what is paid for it."""

    updates: dict[str, Any]
    cost: str

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.updates.items())

    def apply(self, settings: dict) -> dict:
        """A copy of the settings with it."""
        settings = copy.deepcopy(settings)
        for key, value in self.updates.items():
            *groups, name = key.split(".")
            node = settings
            for group in groups:
                node = node[group]
            node[name] = value
        return settings


def candidates(settings: dict) -> Iterator[Change]:
    """Changes that these settings leave room for, from the cheapest to the dearest."""
    rows, chunk = select(settings, "data.batch_size"), select(settings, "objective.chunk_blocks")
    if chunk > 1:
        yield Change({"objective.chunk_blocks": max(1, chunk // 4)}, "same numbers, more and smaller products")
    if rows > 1:
        accumulate = settings["accumulate"] * rows
        yield Change({"data.batch_size": 1, "accumulate": accumulate}, "same step from smaller micro-batches")
    kept = select(settings, "features.max_gib")
    if kept is not None:
        yield Change({"features.max_gib": kept / 4}, "more passes of the target")
    if select(settings, "trainer.precision") == "32-true":
        yield Change({"trainer.precision": "bf16-mixed"}, "rounding; fp32 weights stay")
    if select(settings, "target.dtype") == "float32":
        yield Change({"target.dtype": "bfloat16"}, "rounding of target and baseline; lossless up to ties")
    yield from _halves(settings, "num_anchors", "fewer blocks learnt from in each row")
    yield from _halves(settings, "data.length", "shorter contexts")
    yield from _halves(settings, "draft.depth", "a smaller draft")


def _halves(settings: dict, key: str, cost: str) -> Iterator[Change]:
    value = select(settings, key)
    if value > 1:
        yield Change({key: value // 2}, cost)


def cheapest(settings: dict, plan: Plan, replan: Callable[[dict], Plan], *, count: int = 3) -> list[tuple[Change, int]]:
    """The ``count`` cheapest changes that save something, each with the bytes it saves by itself."""
    found: list[tuple[Change, int]] = []
    for change in candidates(settings):
        saved = plan.peak_bytes - replan(change.apply(settings)).peak_bytes
        if saved > NOTEWORTHY * plan.peak_bytes:
            found.append((change, saved))
        if len(found) == count:
            break
    return found


def refusal(settings: dict, plan: Plan, replan: Callable[[dict], Plan]) -> str:
    """The error for a plan that does not fit: by how much, and the cheapest changes."""
    lines = [
        f"plan: the run needs {plan.peak_bytes / GIB:.2f} GiB at its peak and the device has "
        f"{plan.memory_bytes / GIB:.2f} (budget.memory_gib); the cheapest changes:"
    ]
    changes = cheapest(settings, plan, replan)
    together = settings
    for change, saved in changes:
        lines.append(f"  * {change}: saves {saved / GIB:.2f} GiB ({change.cost})")
        together = change.apply(together)
    peak = replan(together).peak_bytes
    verdict = "fits" if peak <= plan.memory_bytes else "still too much: a smaller target or draft, or a larger device"
    return "\n".join([*lines, f"  all of them together: {peak / GIB:.2f} GiB, {verdict}"])
