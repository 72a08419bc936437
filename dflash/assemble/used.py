"""What a run really uses, told at its start and kept in its report: no choice of a library stays silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from dflash.check import select
from dflash.target.load import LoadedTarget
from dflash.target.used import implementations, weights_format
from dflash.training.module import DistillationModule


def announce_used(
    settings: Mapping, loaded: LoadedTarget, module: DistillationModule, trainer: Any, console: Console
) -> dict[str, str]:
    """Print what is used for what, and give it for the report."""
    used = describe_used(settings, loaded, module, trainer)
    if trainer.is_global_zero:
        console.print(used_panel(used))
    return used


def describe_used(settings: Mapping, loaded: LoadedTarget, module: DistillationModule, trainer: Any) -> dict[str, str]:
    """What is used for what, read off the objects where they know it and off the settings else.

    trainer: Lightning's.
    """
    target, draft = loaded.target, module.draft
    with_what = ", ".join(f"{what} {which}" for what, which in implementations(target).items())
    return {
        "target": f"{target.name}: {weights_format(target)}, {target.device}, {with_what}",
        "draft": _draft(settings, draft.shape.layout),
        "features": f"{in_short(settings['features'])} of layers {', '.join(map(str, draft.shape.taps))}",
        "loss": _loss(settings["objective"]),
        "optimizer": f"{in_short(settings['optimizer'])}, {in_short(settings['schedule'])}, clip {settings['clip']}",
        "precision": f"{trainer.precision}; draft weights {str(next(draft.parameters()).dtype).removeprefix('torch.')}"
        f"; matmul {settings['matmul']}",
        "strategy": f"{type(trainer.strategy).__name__} on {trainer.num_devices * trainer.num_nodes} x "
        f"{type(trainer.accelerator).__name__}",
        "step": f"{settings['accumulate']} x {trainer.world_size} x {select(settings, 'data.batch_size')} rows of "
        f"{select(settings, 'data.length')} tokens, {settings['num_anchors']} blocks of {settings['block_size']} each",
    }


def used_panel(used: Mapping[str, str]) -> Panel:
    """The same for the console."""
    table = Table.grid(padding=(0, 2))
    for what, which in used.items():
        table.add_row(what, which)
    return Panel(table, title="what is used", title_align="left", expand=False)


def in_short(node: Mapping | None) -> str:
    """A node of the settings as its function would be called: ``muon(lr=0.003, momentum=0.95)``."""
    if node is None:
        return "none"
    values = ", ".join(f"{key}={value}" for key, value in node.items() if key not in ("_target_", "_partial_"))
    return f"{node['_target_'].rpartition('.')[2]}({values})"


def _draft(settings: Mapping, layout: tuple[int | None, ...]) -> str:
    layers = ", ".join("full" if window is None else f"window {window}" for window in layout)
    said = [f"attention {in_short(settings['attention'])}", f"layers {layers}"]
    if settings["activation_checkpointing"]:
        said.append("activations computed again in the backward pass")
    if settings["compile"] is not None:
        said.append(f"compiled by {settings['compile']}")
    return "; ".join(said)


def _loss(objective: Mapping[str, Any]) -> str:
    terms = " + ".join(f"{coefficient} {in_short(term)}" for coefficient, term in objective["terms"].values())
    return (
        f"{terms}, weighted {in_short(objective['weighting'])}, over {objective['normalise']}, labels: "
        f"{objective['labels']}"
    )
