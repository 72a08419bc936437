"""The folder of ``hub.assistant.DFlashAssistant``, which plugs a draft into transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dflash.draft.shape import DraftShape
from dflash.hub.body import body_config, finish_shape, read_body
from dflash.hub.bundle import Description, TargetFacts
from dflash.hub.keys import Keys

MODEL_TYPE = "dflash_assistant"
ARCHITECTURE = "DFlashAssistant"


class Assistant:
    """``Format`` of the assistant's folder. Block size, mask token and taps stand where ``generate`` looks for them."""

    name = "transformers"
    shared: tuple[str, ...] = ()

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == MODEL_TYPE

    def to_config(self, shape: DraftShape, facts: TargetFacts, *, dtype: str) -> dict[str, Any]:
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "block_size": shape.block_size,
            "is_causal": False,
            "mask_token_id": shape.mask_token_id,
            "target_layer_ids": list(shape.taps),
            **body_config(shape, facts, dtype=dtype),
        }

    def from_config(self, config: Mapping[str, Any], *, num_target_layers: int | None = None) -> Description:
        keys = Keys(config)
        keys.fixed("architectures", [ARCHITECTURE])
        keys.fixed("model_type", MODEL_TYPE)
        keys.fixed("is_causal", False)
        shape, facts = read_body(keys, num_target_layers=num_target_layers)
        shape = finish_shape(
            keys,
            shape,
            facts,
            taps=keys.integers("target_layer_ids"),
            block_size=keys.integer("block_size", low=2),
            mask_token_id=keys.integer("mask_token_id", low=0),
        )
        keys.close()
        return Description(shape, facts, tuple(keys.findings), frozenset(keys.unfit))

    def warnings(self, shape: DraftShape) -> list[str]:
        return []
