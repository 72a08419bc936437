"""Checks of a whole configuration as plain values, before anything dear is loaded: every finding, not the first.

Stands between composition and assembly. A finding names the key, the value, the bound and the fix. Nothing heavy is
imported here: it takes milliseconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dflash.check_bounds import BOUNDS, CHOICES, PRETRAINING
from dflash.check_data import data_findings
from dflash.check_draft import find_draft
from dflash.check_trainer import find_pretraining, find_trainer
from dflash.hub.against import folder_findings
from dflash.hub.folder import is_draft_folder

PRETRAIN = "dflash.assemble.pretrain.pretrain"


@dataclass(frozen=True)
class Knowns:
    """What is known of the target before it is loaded; any of it may be None."""

    dims: SimpleNamespace | None
    mask_token_id: int | None
    stop_token_ids: tuple[int, ...]


def select(config: Mapping, key: str) -> Any:
    """The value under a dotted key, None where there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def find(config: Mapping, *, build: Callable[[Any, str], Any]) -> list[str]:
    """All findings of a resolved configuration of either script. ``build``: makes the object a node describes."""
    findings = list(_values(config))
    if select(config, "task._target_") == PRETRAIN:
        planned = ["plan=true: pre-training of a target has no plan; leave it out"] if config["plan"] else []
        return [*findings, *planned, *find_pretraining(config), *_finite(config, PRETRAINING)]
    findings += _paths(config)
    known, more = _target(config)
    findings += more
    if "draft" in config:
        findings += find_draft(config, known.dims, build, findings)
        findings += _mask_token(known)
        findings += _training(config)
        findings += find_trainer(config)
    findings += [*data_findings(config), *_lengths(config, known)]
    said = {finding.partition(": ")[0]: finding for finding in reversed(findings)}  # one finding for one value
    return [finding for finding in dict.fromkeys(findings) if finding in said.values()] + _draft_folder(config, known)


def _values(config: Mapping) -> Iterator[str]:
    yield from _finite(config, BOUNDS)
    for key, allowed in CHOICES.items():
        value = select(config, key)
        if value is not None and value not in allowed:
            yield f"{key}={value}: choose one of {', '.join(map(str, allowed))}"
    if "checkpoint" not in config and config.get("block_size") == 1:
        yield "block_size=1: a block of one token leaves nothing to predict; give at least 2, such as block_size=8"


def _finite(config: Mapping, bounds: Mapping) -> Iterator[str]:
    for key, bound in bounds.items():
        value = select(config, key)
        for single in value if isinstance(value, list) else [value]:
            if single is not None and not bound.holds(single):
                yield f"{key}={_shown(value)}: must be {bound}; try {key}={bound.example}"
                break
        if value == []:
            yield f"{key}=[]: must name at least one; try {key}=[{bound.example}]"


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def _paths(config: Mapping) -> Iterator[str]:
    folders = ("data.corpus_root", "data.prompts.corpus_root")
    for key in ("data.path", "data.prompts.path", *folders, "prompts.path", "validation.path"):
        path, source = select(config, key), select(config, f"{key.rpartition('.')[0]}._target_") or ""
        if path is None or path == "???" or "hub" in source.lower() or Path(path).exists():
            continue
        yield f"{key}={path}: does not exist (looked from {os.getcwd()}); give a path that does"
    if config.get("resume") not in (None, "auto") and not Path(config["resume"]).exists():
        yield f"resume={config['resume']}: does not exist; give a run folder, a checkpoint file, or resume=auto"
    for key in ("checkpoint", "init_from"):
        path = config.get(key)
        if path not in (None, "latest") and not Path(path).exists():
            yield (
                f"{key}={path}: does not exist; give a run folder or a checkpoint file of train.py, a draft folder, or "
                "latest"
            )


def _draft_folder(config: Mapping, known: Knowns) -> list[str]:
    """What is wrong with a draft folder given as checkpoint, in itself and beside the target."""
    folder = config.get("checkpoint")
    if folder in (None, "latest") or not is_draft_folder(folder):
        return []
    known_ids = {"mask_token_id": known.mask_token_id, "stop_token_ids": known.stop_token_ids}
    return [f"checkpoint={folder}: {finding}" for finding in folder_findings(folder, sizes=known.dims, **known_ids)]


def _target(config: Mapping) -> tuple[Knowns, list[str]]:
    target, facts = config.get("target") or {}, config.get("target_facts") or {}
    if facts.get("dims"):
        dims = dict(facts["dims"])
        stops = tuple(dims.pop("stop_token_ids", ()))
        return Knowns(SimpleNamespace(**dims), target.get("mask_token_id"), stops), []
    path = target.get("path")
    nothing = Knowns(None, target.get("mask_token_id"), ())
    if path is None or path == "???":
        return nothing, []
    try:
        values = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        dims, stops = _dims_of(values.get("text_config") or values)
    except (OSError, ValueError, KeyError) as error:
        what = (
            f"no {error.args[0]} in its config.json" if isinstance(error, KeyError) else "no readable config.json there"
        )
        return nothing, [
            f"target.path={path}: {what}; give a model folder (weights, config.json, tokenizer), or choose another "
            "target such as target=random_gpt_oss"
        ]
    return Knowns(dims, target.get("mask_token_id"), stops), []


def _dims_of(values: Mapping) -> tuple[SimpleNamespace, tuple[int, ...]]:
    heads, stop = values["num_attention_heads"], values.get("eos_token_id")
    dims = SimpleNamespace(
        hidden_size=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        vocab_size=values["vocab_size"],
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        rope_parameters={},
        max_position_embeddings=values["max_position_embeddings"],
        attention_bias=bool(values.get("attention_bias", False)),
    )
    return dims, tuple(stop if isinstance(stop, list) else [] if stop is None else [stop])


def _mask_token(known: Knowns) -> Iterator[str]:
    mask = known.mask_token_id
    if mask is None or known.dims is None:
        return
    if not 0 <= mask < known.dims.vocab_size:
        yield (
            f"target.mask_token_id={mask}: must be between 0 and {known.dims.vocab_size - 1}, the target's "
            "vocabulary; choose a reserved id"
        )
    if mask in known.stop_token_ids:
        yield f"target.mask_token_id={mask}: is a stop token of the target; choose a reserved id"


def _training(config: Mapping) -> Iterator[str]:
    length, anchors = select(config, "data.length"), config["num_anchors"]
    if length is not None and anchors > length:
        yield f"num_anchors={anchors}: must be at most data.length={length}; lower it or lengthen the rows"
    if length is not None and length < config["block_size"]:
        yield f"data.length={length}: must be at least block_size={config['block_size']}; lengthen the rows"
    longest = (select(config, "data.prompts.prompt_tokens") or [0])[-1]
    if length is not None and longest >= length:
        yield (
            f"data.prompts.prompt_tokens=[..., {longest}]: must end below data.length={length}, or prompts leave no "
            "room for responses; shorten the prompts or lengthen the rows"
        )
    every, at = select(config, "callbacks.acceptance.decode_every"), config["eval_every"]
    if every is not None and at >= 1 and every % at:
        yield (
            f"callbacks.acceptance.decode_every={every}: must be a multiple of eval_every={at}; try "
            f"callbacks.acceptance.decode_every={at * max(1, round(every / at))}"
        )
    if select(config, "callbacks.checkpoints.keep") == 0:
        yield "callbacks.checkpoints.keep=0: must be at least 1, or -1 for all; try callbacks.checkpoints.keep=1"
    if select(config, "features.folder") is not None and select(config, "data.streaming"):
        yield "features=stored with data.streaming=true: what is stored must be held; set data.streaming=false"
    gpu = select(config, "trainer.accelerator") in ("gpu", "cuda")
    if gpu != (config["device"] == "cuda"):
        yield (
            f"device={config['device']} with trainer.accelerator={select(config, 'trainer.accelerator')}: target and "
            "draft must share one; choose trainer=cpu or trainer=gpu instead of setting device"
        )
    if select(config, "objective") is not None and not select(config, "objective.terms"):
        yield "objective.terms is empty; name at least one, or choose a whole objective such as objective=dpace"


def _lengths(config: Mapping, known: Knowns) -> Iterator[str]:
    if known.dims is None:
        return
    limit = known.dims.max_position_embeddings
    limited = (
        "max_new_tokens",
        "data.max_new_tokens",
        "decoding.max_new_tokens",
        "callbacks.acceptance.max_new_tokens",
    )
    for key in ("data.length", *limited):
        value = select(config, key)
        if value is not None and value > limit - (key != "data.length"):
            yield f"{key}={value}: must be at most {limit}, the positions of the target, prompts included; lower it"
