"""A target without weights: its configuration, and a model of it that holds shapes only. For planning a run.

Stands beside ``load``: what that reads from a folder or a hub, this knows from config.json, or from facts in conf
``target`` where there is neither folder nor network.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from dflash.target.attention import register_fused
from dflash.target.flex import register_flex
from dflash.target.layers import plan_layers
from dflash.target.target import Target

GROUPED = "grouped_mm"  # of the ways to run experts the one whose shapes do not depend on data
_NAMES = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads"}


def configuration(path: str, *, facts: Mapping[str, Any] | None, revision: str | None = None) -> PreTrainedConfig:
    """From the folder's config.json, else from ``facts`` (conf ``target_facts``: dims and architecture), else the hub.

    Raises ValueError where none of them tells it.
    """
    facts = facts or {}
    known = facts.get("architecture"), facts.get("dims")
    if not (Path(path) / "config.json").is_file() and all(known):
        values = {_NAMES.get(key, key): value for key, value in known[1].items() if key != "stop_token_ids"}
        values = {key: value for key, value in values.items() if value != {}} | dict(known[0])
        return AutoConfig.for_model(**values)
    try:
        return AutoConfig.from_pretrained(path, **({"revision": revision} if revision else {}))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"target.path={path!r}: its configuration cannot be read ({reason}); give a folder") from error


def outline(config: PreTrainedConfig, *, fake: AbstractContextManager, dtype: str, attention: str, name: str) -> Target:
    """The target with shapes for weights, whose methods run under ``fake`` (a FakeTensorMode) and compute nothing.

    Experts run as grouped products. Raises ValueError for recurrent layers: where their rows are cut depends on data.
    """
    text = config.get_text_config()
    if plan_layers(text, name).recurrent:
        raise ValueError(
            f"plan=true: target {name} has recurrent layers, whose passes depend on where documents end; it cannot be "
            "planned. Leave plan out"
        )
    register_fused()
    register_flex()
    with fake:
        model = AutoModelForCausalLM.from_config(text, dtype=getattr(torch, dtype), attn_implementation=attention)
        if "num_local_experts" in text.to_dict() or "num_experts" in text.to_dict():
            model.set_experts_implementation(GROUPED)
        return Target(model, name=name)
