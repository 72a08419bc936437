"""A draft folder against a target. It has no contract, so what can be compared is compared, and all of it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dflash.draft.shape import DraftShape
from dflash.hub.folder import examine


class Sizes(Protocol):
    """What is compared of a target (``target.TargetDims``)."""

    hidden_size: int
    num_layers: int
    vocab_size: int


def folder_findings(
    folder: str | Path, *, sizes: Sizes | None, mask_token_id: int | None, stop_token_ids: tuple[int, ...]
) -> list[str]:
    """What is wrong with a draft folder in itself and, where the target is known, beside it; no weight is read."""
    try:
        known = examine(folder, num_target_layers=None if sizes is None else sizes.num_layers)
    except ValueError as error:
        return [str(error)]
    if known.findings or sizes is None:
        return list(known.findings)
    ids = {"mask_token_id": mask_token_id, "stop_token_ids": stop_token_ids}
    return target_findings(known.shape, vocab_size=known.facts.vocab_size, sizes=sizes, **ids)


def target_findings(
    shape: DraftShape,
    *,
    vocab_size: int,
    sizes: Sizes,
    mask_token_id: int | None = None,
    stop_token_ids: tuple[int, ...] = (),
) -> list[str]:
    """Every difference between a draft made for ``shape`` and ``vocab_size`` and this target.

    mask_token_id: the target's, where it names one.
    """
    findings = []
    pairs = {
        "hidden_size": (shape.hidden_size, sizes.hidden_size),
        "vocab_size": (vocab_size, sizes.vocab_size),
        "num_target_layers": (shape.num_target_layers, sizes.num_layers),
    }
    for name, (draft, target) in pairs.items():
        if draft != target:
            findings.append(f"{name}: the draft was made for {draft}, the target has {target}")
    beyond = [tap for tap in shape.taps if tap > sizes.num_layers - 2]
    if beyond:
        findings.append(f"taps {beyond}: the target's last layer that can be tapped is {sizes.num_layers - 2}")
    mask = shape.mask_token_id
    if mask >= sizes.vocab_size:
        findings.append(f"mask token {mask}: the target's vocabulary ends at {sizes.vocab_size - 1}")
    elif mask in stop_token_ids:
        findings.append(f"mask token {mask}: is a stop token of the target")
    elif mask_token_id is not None and mask != mask_token_id:
        findings.append(f"mask token: the draft was trained with {mask}, the target is set to {mask_token_id}")
    return findings
