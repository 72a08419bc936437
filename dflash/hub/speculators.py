"""The folder of the speculators library, which vLLM loads: a Qwen3 decoder nested in a speculator's configuration.

Taps are stored one higher (``hub.taps``). Its loader expects the target's embedding and head beside the draft, so both
are written; newer versions of the library leave them out, so both are optional when read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dflash.draft.shape import DraftShape
from dflash.hub.body import CONVENTION, body_config, finish_shape, read_body
from dflash.hub.bundle import SHARED, Description, TargetFacts
from dflash.hub.keys import Keys
from dflash.hub.taps import from_hidden_state_ids, to_hidden_state_ids

KIND = "dflash"
REACH = (
    "the folder has sliding-window layers and does not say how far a window reaches: speculators trains on context "
    ">= anchor - window, vLLM and this engine use >= slot - (window - 1)"
)
TRAINER_REACH = (
    "speculators' own trainer would continue this draft with windows that reach to anchor - window, one convention "
    "off from the slot - (window - 1) it was trained with"
)


class Speculators:
    """``Format`` of a speculators folder."""

    name = "speculators"
    shared = SHARED

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config.get("speculators_model_type") == KIND

    def to_config(self, shape: DraftShape, facts: TargetFacts, *, dtype: str) -> dict[str, Any]:
        return {
            "speculators_model_type": KIND,
            "architectures": ["DFlashSpeculator"],
            "aux_hidden_state_layer_ids": to_hidden_state_ids(shape.taps),
            "block_size": shape.block_size,
            "draft_vocab_size": facts.vocab_size,
            "dtype": dtype,
            "mask_token_id": shape.mask_token_id,
            "sample_from_anchor": False,
            "sliding_window_non_causal": True,
            "tie_word_embeddings": False,
            "transformer_layer_config": {"model_type": "qwen3", **body_config(shape, facts, dtype=dtype)},
            "speculators_config": {
                "algorithm": KIND,
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": shape.block_size - 1}],
                "verifier": {"name_or_path": facts.name, "architectures": list(facts.architectures)},
            },
        }

    def from_config(self, config: Mapping[str, Any], *, num_target_layers: int | None = None) -> Description:
        keys = Keys(config)
        for key, allowed in _FIXED.items():
            keys.fixed(key, *allowed)
        inner = keys.nested("transformer_layer_config")
        inner.fixed("model_type", "qwen3")
        shape, facts = read_body(inner, num_target_layers=num_target_layers)
        inner.close()
        keys.fixed("draft_vocab_size", facts.vocab_size)
        keys.fixed("target_hidden_size", shape.hidden_size)
        shape = finish_shape(
            keys,
            shape,
            facts,
            taps=from_hidden_state_ids(keys.integers("aux_hidden_state_layer_ids")),
            block_size=keys.integer("block_size", low=2),
            mask_token_id=keys.integer("mask_token_id", low=0),
        )
        if any(shape.layout) and not keys.flag("sliding_window_non_causal", default=False):
            keys.note("sliding_window_non_causal=false", "means causal blocks in sliding layers, which do not run here")
        facts = _verifier(keys, facts)
        keys.close()
        notes = (REACH,) if any(shape.layout) and CONVENTION not in inner.values else ()
        return Description(shape, facts, tuple(keys.findings), frozenset(keys.unfit), notes)

    def warnings(self, shape: DraftShape) -> list[str]:
        return [TRAINER_REACH] if any(shape.layout) else []


# Other values belong to relatives of DFlash. The names of the architecture are the library's, old and new.
_FIXED: dict[str, tuple] = {
    "speculators_model_type": (KIND,),
    "architectures": (["DFlashSpeculator"], ["DFlashDraftModel"]),
    "sample_from_anchor": (False,),
    "projector_type": (KIND,),
    "shift_label": (False,),
}
# Training options and defaults of Domino's, which the library writes into every folder.
_UNUSED = (
    *("speculators_version", "has_no_defaults_at_init", "model_type", "max_anchors", "sliding_window_non_causal"),
    *("auf", "emb_dim", "gru_hidden_dim", "lambda_base_start", "lambda_base_decay_ratio", "pure_draft_prefix_len"),
)


def _verifier(keys: Keys, facts: TargetFacts) -> TargetFacts:
    """The facts with the verifier's name; proposal methods only steer a server."""
    for key in _UNUSED:
        keys.get(key)
    inner = keys.nested("speculators_config", required=False)
    inner.fixed("algorithm", KIND)
    inner.get("default_proposal_method")
    inner.get("proposal_methods")
    verifier = inner.nested("verifier", required=False)
    name, kinds = verifier.get("name_or_path", ""), verifier.get("architectures", [])
    inner.close()
    return replace(facts, name=str(name), architectures=tuple(map(str, kinds)) if isinstance(kinds, list) else ())
