"""Export and import: checkpoints of ours to draft folders, folders to one another, and folders to checkpoints.

The verbs of the command line, as functions.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import torch

from dflash.draft.shape import DraftShape
from dflash.hub.against import folder_findings, target_findings
from dflash.hub.bundle import Bundle, TargetFacts
from dflash.hub.card import find_report, model_card
from dflash.hub.convert import read_folder, write_folder
from dflash.hub.folder import examine, format_named, is_draft_folder
from dflash.hub.keys import complain
from dflash.hub.source import bundle_findings
from dflash.hub.target_folder import find_target, read_facts, read_shared
from dflash.target.load import local_target, read_dims
from dflash.training.checkpoint import (
    CONTRACT_KEY,
    DRAFT_PREFIX,
    draft_weights,
    find_checkpoint,
    make_contract,
    read_checkpoint,
)


def export(
    source: str | Path, folder: str | Path, *, format: str, target: str | None = None, dtype: str | None = None
) -> list[str]:
    """Write the draft of a run, a checkpoint or a draft folder into a new folder; gives warnings, each a sentence.

    target: folder or hub id of the target; default what the source names. dtype: of the weights written; default as
    stored, which is exact. Raises ValueError for anything that does not fit.
    """
    form, source = format_named(format), Path(source)
    bundle, name, report = _open(source, target)
    if target or form.shared or not bundle.facts.vocab_size:
        bundle = _with_target(bundle, target or name, shared=bool(form.shared), source=source)
    if dtype is not None:
        kind = getattr(torch, dtype)
        bundle = replace(
            bundle,
            weights={key: value.to(kind) for key, value in bundle.weights.items()},
            shared={key: value.to(kind) for key, value in bundle.shared.items()},
        )
    card = model_card(form, bundle, folder=str(folder), origin=str(source), report=report)
    write_folder(folder, form, bundle, card=card)
    return [*bundle.notes, *form.warnings(bundle.shape)]


def _open(source: Path, target: str | None) -> tuple[Bundle, str, dict | None]:
    """(the draft, the target's name as far as the source knows it, its report)."""
    if is_draft_folder(source):
        layers = None if target is None else read_dims(find_target(target)).num_layers
        bundle = read_folder(source, num_target_layers=layers)
        return bundle, bundle.facts.name, None
    path = find_checkpoint(source)
    state = read_checkpoint(path)
    contract = state[CONTRACT_KEY]
    weights = draft_weights(state)
    bundle = Bundle(DraftShape.from_dict(contract["shape"]), TargetFacts(vocab_size=0), weights)
    return bundle, contract["target_name"], find_report(path)


def _with_target(bundle: Bundle, name: str, *, shared: bool, source: Path) -> Bundle:
    """The bundle with the target's facts, and its matrices where the format carries them."""
    place = find_target(name)
    facts = read_facts(place, name=name)
    known = bundle.facts.vocab_size or facts.vocab_size
    complain(f"{source} against target {name}", target_findings(bundle.shape, vocab_size=known, sizes=read_dims(place)))
    carried = read_shared(place, vocab_size=known, hidden_size=bundle.shape.hidden_size) if shared else {}
    return replace(bundle, facts=facts, shared=carried)


def import_folder(
    folder: str | Path, run: str | Path, *, target: str, dtype: str = "float32", device: str = "cpu"
) -> tuple[str, ...]:
    """Write a draft folder as a run that evaluate.py takes without being told the target; gives notes.

    The target is loaded once, for the contract. Raises ValueError that lists every difference between the two, and
    where ``run`` is there already.
    """
    run = Path(run)
    if run.exists():
        raise ValueError(f"{run} is there already; give a new folder")
    place = find_target(target)
    against = {"sizes": read_dims(place), "mask_token_id": None, "stop_token_ids": ()}
    complain(f"draft folder {folder} for target {target}", folder_findings(folder, **against))
    known = examine(folder, num_target_layers=against["sizes"].num_layers)
    settings = {"path": str(place), "dtype": dtype, "device": device, "mask_token_id": known.shape.mask_token_id}
    loaded = local_target(**settings)()
    bundle = read_folder(folder, num_target_layers=loaded.target.dims.num_layers)
    complain(f"draft folder {folder} against target {target}", bundle_findings(bundle, loaded))
    state = {
        CONTRACT_KEY: make_contract(loaded, bundle.shape),
        "state_dict": {DRAFT_PREFIX + key: value for key, value in bundle.weights.items()},
        "global_step": 0,
    }
    facts = {"num_taps": len(bundle.shape.taps), "num_half_taps": len(bundle.shape.taps), "chat": {}, "dims": None}
    node = {"_target_": "dflash.target.load.local_target", **settings, "attention": "eager", "experts": None}
    (run / "checkpoints").mkdir(parents=True)
    unfinished = run / "checkpoints" / f".last.ckpt.{os.getpid()}"
    torch.save(state, unfinished)
    unfinished.rename(run / "checkpoints" / "last.ckpt")
    (run / "config.yaml").write_text(json.dumps({"target": node, "target_facts": facts}, indent=2) + "\n")  # YAML, too
    return bundle.notes
