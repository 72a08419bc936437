"""Builds the parts that settings name, so that every wrong one is told at once and before any weight is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from dflash.allocator import keep_freed_memory
from dflash.check import select
from dflash.compose import build, raise_findings
from dflash.target.reading import Reading, read_reading


def build_parts(settings: Mapping, kinds: Mapping[str, type | None]) -> dict[str, Any]:
    """Dotted key -> object of the kind asked for (None: something to call); null stays None.

    Raises ValueError that lists all keys whose values their constructors refuse.
    """
    parts, findings = {}, []
    for key, kind in kinds.items():
        node = select(settings, key)
        try:
            parts[key] = None if node is None else build(node, key, kind)
        except ValueError as error:
            findings.append(str(error))
    raise_findings(findings)
    return parts


def members(settings: Mapping, group: str, kind: type | None = None) -> dict[str, type | None]:
    """The keys of a group that holds several objects, each of ``kind``."""
    return {f"{group}.{name}": kind for name in select(settings, group) or {}}


def members_of(parts: Mapping[str, Any], group: str) -> list[Any]:
    """The parts of a group that holds several objects, those set to null left out."""
    return [part for key, part in parts.items() if key.startswith(f"{group}.") and part is not None]


def reading_of(target: Mapping[str, Any], load) -> Reading:
    """The text side of the target that ``target`` describes; only one with random weights is loaded for it."""
    if target.get("path") is not None:
        return read_reading(target["path"], revision=target.get("revision"))
    loaded = load()
    return Reading(loaded.tokenizer, loaded.stop_token_ids)


def ready_device(device: str) -> None:
    """Make this process's GPU the current one; on a CPU, keep freed memory. Raises ValueError where ``device`` is cuda
    and there is none."""
    if device != "cuda":
        keep_freed_memory()
        return
    if not torch.cuda.is_available():
        raise ValueError("device=cuda: no CUDA GPU is visible here; use a machine that has one, or trainer=cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
