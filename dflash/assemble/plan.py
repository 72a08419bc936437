"""train.py plan=true: the plan of a run from its settings; no weights, no data, no network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from dflash.check import select
from dflash.compose import Run
from dflash.evaluation.report import write_whole
from dflash.plan.changes import refusal
from dflash.plan.ledger import Rates
from dflash.plan.plan import GIB, Plan
from dflash.plan.rates import is_here, measure_rates, memory_bytes
from dflash.plan.rehearsal import rehearse
from dflash.plan.show import plan_tables

COMPUTE = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # what the draft computes in
UNKNOWN = Rates(math.inf, math.inf)
Parts = Callable[[dict], dict]


def plan_run(settings: dict, run: Run, *, parts_of: Parts, module_of: Callable) -> None:
    """Print the plan and write plan.json. Raises ValueError, with the cheapest changes, for a run that does not fit.

    parts_of: settings -> parts. module_of: (settings, parts, target, mask_token_id=) -> the module to rehearse.
    """
    rates = rates_of(settings)

    def replan(changed: dict) -> Plan:
        return make_plan(changed, parts_of(changed), rates=rates, module_of=module_of)

    plan = replan(settings)
    run.folder.mkdir(parents=True, exist_ok=True)
    path = Path(run.folder) / "plan.json"
    write_whole(path, json.dumps(plan.to_dict(), indent=2) + "\n")
    console = Console()
    console.print(plan_tables(plan))
    console.print(f"plan: {path}", soft_wrap=True)
    if not plan.fits:
        raise ValueError(refusal(settings, plan, replan))


def make_plan(settings: dict, parts: dict, *, rates: Rates | None, module_of: Callable) -> Plan:
    """The plan of a run with these settings and parts, from a rehearsal of two steps."""
    length, batch_size = select(settings, "data.length"), select(settings, "data.batch_size")
    rehearsal = rehearse(
        lambda fake: parts["target"].outline(settings["target_facts"], fake),
        lambda target: module_of(settings, parts, target, mask_token_id=select(settings, "target.mask_token_id") or 0),
        length=length,
        batch_size=batch_size,
        rates=rates if rates is not None else UNKNOWN,
        autocast=COMPUTE[select(settings, "trainer.precision")],
    )
    local = select(settings, "trainer.devices")
    devices = local * (select(settings, "trainer.num_nodes") or 1)
    shards = select(settings, "trainer.strategy.data_parallel_size") or 1
    rows = devices * batch_size * settings["accumulate"]
    row_bytes = rehearsal.feature_bytes // batch_size
    seen = min(settings["steps"] * rows, _rows_of_data(settings) or math.inf)
    memory = select(settings, "budget.memory_gib")
    device = settings["device"]
    return Plan(
        rehearsal=rehearsal,
        memory_bytes=int(memory * GIB) if memory else _memory_at_hand(device, local),
        rates=rates,
        kept_bytes=parts["features"].kept_bytes(row_bytes, math.ceil(seen / devices)),
        stored_bytes=parts["features"].stored_bytes(row_bytes, seen),
        bucket_bytes=rehearsal.gradient_bytes if devices > 1 and shards == 1 else 0,
        num_shards=shards,
        steps=settings["steps"],
        num_rows=rows,
        length=length,
        num_devices=devices,
        num_checkpoints=_num_checkpoints(settings),
    )


def rates_of(settings: dict) -> Rates | None:
    """What ``budget`` gives, what is missing measured; None where it can be neither."""
    flops, traffic = select(settings, "budget.matmul_tflops"), select(settings, "budget.bandwidth_gb_s")
    device, dtype = settings["device"], COMPUTE[select(settings, "trainer.precision")] or torch.float32
    if flops is not None and traffic is not None:
        return Rates(flops * 1e12, traffic * 1e9, select(settings, "budget.launch_us") * 1e-6)
    if not is_here(device):
        return None
    measured = measure_rates(device, dtype=dtype)
    return Rates(
        measured.flops if flops is None else flops * 1e12,
        measured.bytes if traffic is None else traffic * 1e9,
        measured.launch_seconds,
    )


def _memory_at_hand(device: str, num_processes: int) -> int | None:
    """A GPU's own, or a processor's, which the processes of a run share; None where there is no such device."""
    if not is_here(device):
        return None
    return memory_bytes(device) // (num_processes if device == "cpu" else 1)


def _rows_of_data(settings: dict) -> int | None:
    """The most rows that the prompts and their responses can fill; None where the source does not say."""
    count, new = select(settings, "data.prompts.count"), select(settings, "data.max_new_tokens")
    longest = (select(settings, "data.prompts.prompt_tokens") or [select(settings, "data.prompts.max_tokens")])[-1]
    if None in (count, new, longest):
        return None
    length = select(settings, "data.length")
    rows_full = length // min(length, longest + new)  # whole documents in a row, the worst of packings
    return math.ceil(count / rows_full)


def _num_checkpoints(settings: dict) -> int:
    """Files at once: the periodic ones kept, the last and the best."""
    keep, every = select(settings, "callbacks.checkpoints.keep"), settings["checkpoint_every"]
    if keep is None:
        return 0
    periodic = settings["steps"] // every
    return min(periodic, keep if keep > 0 else periodic) + 2
