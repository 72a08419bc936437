"""Checkpoints and their contract: what a draft was trained against, and must be resumed and evaluated against."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from dflash.draft.draft import Draft
from dflash.draft.shape import DraftShape
from dflash.target.load import LoadedTarget

CONTRACT_KEY = "contract"
AVERAGE_KEY = "average"  # of the draft's weights, where the run kept one
DRAFT_PREFIX = "draft."


def make_contract(loaded: LoadedTarget, shape: DraftShape) -> dict:
    """Plain values that must not differ between training, resuming and evaluating."""
    return {
        "target_fingerprint": loaded.target.fingerprint(),
        "target_name": loaded.target.name,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint(),
        "shape": shape.to_dict(),
    }


def check_contract(saved: dict, current: dict, *, what: str) -> None:
    """Raises ValueError that lists every difference.

    The target's name is told but not compared: the same weights may lie in another folder.
    """
    differences = []
    if saved["target_fingerprint"] != current["target_fingerprint"]:
        differences.append(f"target: trained against {saved['target_name']}, now {current['target_name']}")
    if saved["tokenizer_fingerprint"] != current["tokenizer_fingerprint"]:
        differences.append("tokenizer: vocabulary or chat template differ")
    for key in sorted(saved["shape"] | current["shape"]):
        old, new = saved["shape"].get(key), current["shape"].get(key)
        if old != new:
            differences.append(f"{key}: checkpoint {old}, now {new}")
    if differences:
        raise ValueError(f"{what} was made under another contract:\n  " + "\n  ".join(differences))


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file of a run folder (the best by acceptance, else the last), or the file itself.

    Raises ValueError if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    folders = [path, path / "checkpoints"]
    for name in ("best.ckpt", "last.ckpt"):
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    raise ValueError(
        f"checkpoint={str(path)!r} is neither a checkpoint file nor a run folder with checkpoints/best.ckpt or "
        "checkpoints/last.ckpt; run train.py first or give its output folder"
    )


def last_checkpoint(path: str | Path) -> Path:
    """The checkpoint to resume from: ``path`` or the run folder's last one. Raises ValueError if there is none."""
    path = Path(path)
    for candidate in (path, path / "last.ckpt", path / "checkpoints" / "last.ckpt"):
        if candidate.is_file():
            return candidate
    raise ValueError(f"resume={str(path)!r}: no checkpoint file and no checkpoints/last.ckpt there")


def read_state(path: str | Path) -> dict:
    """A checkpoint's contents, loaded without running any code in it; weights stay on disk until they are used. Raises
    ValueError if it holds no weights of a Lightning module."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]  # behind that torch advises to run code from the file
        raise ValueError(f"checkpoint {path} cannot be read: {reason}; it is damaged, or none of train.py's") from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise ValueError(f"checkpoint {path} holds no weights; it was not written by train.py of this project")
    return state


def read_checkpoint(path: str | Path) -> dict:
    """``read_state`` of a run that trained a draft. Raises ValueError if it is none of ours."""
    state = read_state(path)
    if CONTRACT_KEY not in state:
        raise ValueError(f"checkpoint {path} carries no contract; it was not written by train.py of this project")
    return state


def check_checkpoint(path: str | Path, contract: dict) -> None:
    """Raises ValueError unless a run with this contract can be resumed from the checkpoint."""
    check_contract(read_checkpoint(path)[CONTRACT_KEY], contract, what="the checkpoint to resume from")


def draft_weights(state: dict) -> dict[str, Tensor]:
    """Name -> weight of the draft in a checkpoint's contents: the averaged ones where the run kept them."""
    weights = {k.removeprefix(DRAFT_PREFIX): v for k, v in state["state_dict"].items() if k.startswith(DRAFT_PREFIX)}
    return weights | state.get(AVERAGE_KEY, {}).get("weights", {})


def load_draft(path: str | Path, loaded: LoadedTarget) -> Draft:
    """The draft of a checkpoint, in eval mode, on the target's device: averaged weights where the run kept them.

    Raises ValueError if the checkpoint was trained against another target.
    """
    state = read_checkpoint(path)
    shape = DraftShape.from_dict(state[CONTRACT_KEY]["shape"])
    check_contract(state[CONTRACT_KEY], make_contract(loaded, shape), what=f"checkpoint {path}")
    draft = Draft(shape)
    draft.load_state_dict(draft_weights(state))
    return draft.to(loaded.target.device).eval()
