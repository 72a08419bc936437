"""The DFlashDraftModel folder of z-lab, which vLLM and SGLang load, and which SpecForge writes too.

Its ids of target layers are ours. The target's embedding and head stay outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dflash.draft.shape import DraftShape
from dflash.hub.body import body_config, finish_shape, read_body
from dflash.hub.bundle import Description, TargetFacts
from dflash.hub.keys import REQUIRED, Keys

ARCHITECTURE = "DFlashDraftModel"
SGLANG_IS_CAUSAL = (
    "SGLang (0.5.23) runs sliding-window draft layers causally inside the block, whatever the folder says; this draft "
    "was trained with whole blocks visible, so serve it with vLLM, which reads is_causal, or train layout=full"
)
UNSAID = (
    "the folder has sliding-window layers and does not say whether their blocks are causal (no is_causal, no "
    "dflash_config.causal): they run bidirectionally here; if acceptance is low, that is why"
)


class Zlab:
    """``Format`` of the DFlashDraftModel folder."""

    name = "zlab"
    shared: tuple[str, ...] = ()

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config.get("architectures") == [ARCHITECTURE] and "speculators_model_type" not in config

    def to_config(self, shape: DraftShape, facts: TargetFacts, *, dtype: str) -> dict[str, Any]:
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "qwen3",
            "block_size": shape.block_size,
            "is_causal": False,
            "dflash_config": {
                "block_size": shape.block_size,
                "causal": False,
                "mask_token_id": shape.mask_token_id,
                "target_layer_ids": list(shape.taps),
            },
            **body_config(shape, facts, dtype=dtype),
        }

    def from_config(self, config: Mapping[str, Any], *, num_target_layers: int | None = None) -> Description:
        keys = Keys(config)
        keys.fixed("architectures", [ARCHITECTURE])
        keys.fixed("model_type", "qwen3")
        keys.fixed("is_causal", False)
        inner = keys.nested("dflash_config")
        _only_plain_dflash(inner)
        outer_layers = inner.get("num_target_layers", num_target_layers)
        shape, facts = read_body(keys, num_target_layers=outer_layers)
        shape = finish_shape(
            keys,
            shape,
            facts,
            taps=inner.integers("target_layer_ids"),
            block_size=_block_size(keys, inner),
            mask_token_id=inner.integer("mask_token_id", low=0),
        )
        inner.close()
        keys.close()
        unsaid = any(shape.layout) and keys.get("is_causal") is None and inner.get("causal") is None
        return Description(shape, facts, tuple(keys.findings), frozenset(keys.unfit), (UNSAID,) if unsaid else ())

    def warnings(self, shape: DraftShape) -> list[str]:
        return [SGLANG_IS_CAUSAL] if any(shape.layout) else []


def _only_plain_dflash(inner: Keys) -> None:
    """Options of relatives of DFlash that would make it another draft."""
    inner.fixed("causal", False)
    inner.fixed("projector_type", "dflash")
    inner.fixed("use_swa", False)
    inner.fixed("attention_sink_bias", False)
    inner.fixed("use_aux_hidden_state", True)
    inner.fixed("output_multiplier", 1, 1.0)
    inner.fixed("final_logit_softcapping", 0, 0.0)
    inner.fixed("sample_from_anchor", False)
    inner.get("mask_token")  # its text; the id decides


def _block_size(keys: Keys, inner: Keys) -> int:
    """At the top level, in dflash_config (where SGLang looks first), or in both alike."""
    own = inner.get("block_size")
    size = keys.integer("block_size", low=2, default=REQUIRED if own is None else own)
    if own is not None and own != size:
        keys.note(f"block_size={size}", f"and dflash_config.block_size={own!r} differ; make them agree")
    return size
