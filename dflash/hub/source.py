"""Where a draft to decode with comes from: a checkpoint of train.py, or a folder in one of the field's formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from dflash.draft.draft import Draft
from dflash.hub.against import target_findings
from dflash.hub.bundle import EMBEDDING, HEAD, Bundle
from dflash.hub.convert import read_folder
from dflash.hub.folder import is_draft_folder, read_config
from dflash.hub.keys import complain
from dflash.target.load import LoadedTarget
from dflash.training.checkpoint import find_checkpoint, load_draft, read_checkpoint


class Source(Protocol):
    """A draft on disk."""

    path: Path

    def load(self, loaded: LoadedTarget) -> tuple[Draft, tuple[str, ...]]:
        """(the draft in eval mode on the target's device, what the user should know).

        Raises ValueError where it is not this target's.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Its line in a report."""
        ...


def find_source(path: str | Path) -> Source:
    """What lies at ``path``: a draft folder if it has a config.json, else a run or a checkpoint file.

    Raises ValueError if it is none of these.
    """
    return FolderSource(Path(path)) if is_draft_folder(path) else CheckpointSource(find_checkpoint(path))


class CheckpointSource:
    """A checkpoint: its contract says which target it belongs to."""

    def __init__(self, path: Path):
        self.path = path
        self.step = read_checkpoint(path)["global_step"]

    def load(self, loaded: LoadedTarget) -> tuple[Draft, tuple[str, ...]]:
        return load_draft(self.path, loaded), ()

    def describe(self) -> dict[str, Any]:
        return {"checkpoint": str(self.path.resolve()), "step": self.step}


class FolderSource:
    """A draft folder: it names no target, so its dimensions are held against the one given."""

    def __init__(self, path: Path):
        self.path = path
        self.form, _ = read_config(path)

    def load(self, loaded: LoadedTarget) -> tuple[Draft, tuple[str, ...]]:
        bundle = read_folder(self.path, num_target_layers=loaded.target.dims.num_layers)
        complain(f"draft folder {self.path} against target {loaded.target.name}", bundle_findings(bundle, loaded))
        draft = Draft(bundle.shape)
        draft.load_state_dict(bundle.weights)
        return draft.to(loaded.target.device).eval(), bundle.notes

    def describe(self) -> dict[str, Any]:
        return {"checkpoint": str(self.path.resolve()), "step": None, "format": self.form.name}


def bundle_findings(bundle: Bundle, loaded: LoadedTarget) -> list[str]:
    """Every difference between a draft and a target, copies of the target's matrices included."""
    target = loaded.target
    findings = target_findings(
        bundle.shape,
        vocab_size=bundle.facts.vocab_size,
        sizes=target.dims,
        mask_token_id=loaded.mask_token_id,
        stop_token_ids=loaded.stop_token_ids,
    )
    own = {EMBEDDING: target.backbone.get_input_embeddings().weight, HEAD: target.lm_head.weight}
    for name, copy in bundle.shared.items():
        weight = own[name]
        if copy.shape == weight.shape and not torch.equal(copy.to(weight), weight):
            findings.append(f"tensor {name}: is not the target's; the draft was trained against other weights")
    return findings
