"""How a run computes, in words: printed when it starts and kept in its report, so that nothing is chosen in silence."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from dflash.target.target import Target


def announce_compute(
    settings: dict, attention: object, trainer: Any, target: Target, console: Console
) -> dict[str, Any]:
    """Plain values: what holds for this run, after every choice that a library makes has been made."""
    compute = {
        "strategy": type(trainer.strategy).__name__,
        "ranks": trainer.world_size,
        "precision": trainer.precision,
        "draft_attention": type(attention).__name__,
        "target_attention": target.config._attn_implementation,
        "target_experts": target.config._experts_implementation,
        "compile": settings["compile"],
        "activation_checkpointing": settings["activation_checkpointing"],
    }
    if trainer.is_global_zero:
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in compute.items())
        console.print(f"computed with {told}", soft_wrap=True)
    return compute
