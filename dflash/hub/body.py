"""The part of a config.json that all formats share: a Qwen3 decoder's keys, written and read.

Sliding layers leave two questions open that public trainers answer differently, so ours are written down: what a
window reaches (``sliding_window_convention``) and whether slots of a block see later ones (``is_causal`` and each
format's own key). Blocks are never causal here, in sliding layers neither.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dflash.draft.shape import DraftShape
from dflash.draft.taps import check_taps
from dflash.hub.bundle import TargetFacts
from dflash.hub.keys import REQUIRED, Keys
from dflash.hub.rope import read_rope, rope_config

FULL, SLIDING = "full_attention", "sliding_attention"
CONVENTION = "sliding_window_convention"
SLOT = "slot"  # slot at position p sees context >= p - (window - 1): transformers, vLLM, SpecForge and ours


def body_config(shape: DraftShape, facts: TargetFacts, *, dtype: str) -> dict[str, Any]:
    """The shared keys. Raises ValueError where layers have windows of several widths, for the formats hold one, and for
    a draft with heads or other variations, which they do not."""
    if shape.variations:
        raise ValueError(
            f"this draft has {', '.join(sorted(shape.variations))}: no format here can hold that, and a server would "
            "decode without it; export a draft trained without"
        )
    windows = sorted({window for window in shape.layout if window is not None})
    if len(windows) > 1:
        raise ValueError(f"layout={list(shape.layout)}: formats hold one sliding window, not {windows}; train with one")
    return {
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.rms_norm_eps,
        "attention_bias": shape.attention_bias,
        **rope_config(shape.rope_parameters),
        "max_position_embeddings": shape.max_position_embeddings,
        "layer_types": [FULL if window is None else SLIDING for window in shape.layout],
        "sliding_window": windows[0] if windows else None,
        "use_sliding_window": bool(windows),
        "max_window_layers": shape.depth,
        CONVENTION: SLOT,
        "num_target_layers": shape.num_target_layers,
        "vocab_size": facts.vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": facts.bos_token_id,
        "eos_token_id": facts.eos_token_id,
        "dtype": dtype,
    }


def read_body(keys: Keys, *, num_target_layers: int | None = None) -> tuple[DraftShape, TargetFacts]:
    """The shape but for taps, block size and mask token, which each format keeps elsewhere, and the facts.

    num_target_layers: used where the folder does not say. What is wrong is noted in ``keys``.
    """
    depth, positions = keys.integer("num_hidden_layers"), keys.integer("max_position_embeddings")
    heads, kv_heads = keys.integer("num_attention_heads"), keys.integer("num_key_value_heads")
    if heads % kv_heads:
        keys.note(f"num_key_value_heads={kv_heads}", f"does not divide num_attention_heads={heads}")
    head_dim = keys.integer("head_dim", low=2)
    if head_dim % 2:
        keys.note(f"head_dim={head_dim}", "must be even for rotary positions")
    keys.fixed("hidden_act", "silu")
    keys.fixed("mlp_bias", False)
    keys.fixed("attention_dropout", 0, 0.0)
    shape = DraftShape(
        hidden_size=keys.integer("hidden_size"),
        intermediate_size=keys.integer("intermediate_size"),
        depth=depth,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        attention_bias=keys.flag("attention_bias", default=False),
        rms_norm_eps=keys.number("rms_norm_eps"),
        rope_parameters=read_rope(keys, max_position_embeddings=positions),
        max_position_embeddings=positions,
        num_target_layers=keys.integer(
            "num_target_layers", default=REQUIRED if num_target_layers is None else num_target_layers
        ),
        taps=(),
        layout=_layout(keys, depth),
        block_size=1,
        mask_token_id=0,
    )
    values = keys.values
    facts = TargetFacts(
        vocab_size=keys.integer("vocab_size"),
        bos_token_id=values.get("bos_token_id"),
        eos_token_id=values.get("eos_token_id"),
    )
    return shape, facts


def finish_shape(
    keys: Keys, shape: DraftShape, facts: TargetFacts, *, taps: tuple[int, ...], block_size: int, mask_token_id: int
) -> DraftShape:
    """The whole shape; notes taps outside the target and mask tokens outside the vocabulary."""
    if not keys.unfit & {"num_target_layers", "target_layer_ids", "aux_hidden_state_layer_ids"}:
        try:
            check_taps(taps, shape.num_target_layers)
        except ValueError as error:
            keys.findings.append(str(error))
    if mask_token_id >= facts.vocab_size and "vocab_size" not in keys.unfit:
        keys.note(f"mask_token_id={mask_token_id}", f"must be below vocab_size={facts.vocab_size}")
    return replace(shape, taps=taps, block_size=block_size, mask_token_id=mask_token_id)


def _layout(keys: Keys, depth: int) -> tuple[int | None, ...]:
    """Windows by layer, from layer_types or, without them, from Qwen3's rule of max_window_layers."""
    kinds, sliding = keys.get("layer_types"), keys.flag("use_sliding_window", default=False)
    first = keys.integer("max_window_layers", low=0, default=28)  # Qwen3's default
    window = keys.get("sliding_window")
    keys.fixed(CONVENTION, SLOT)
    if kinds is None:
        kinds = [SLIDING if sliding and window is not None and i >= first else FULL for i in range(depth)]
    if not isinstance(kinds, list) or len(kinds) != depth or not set(kinds) <= {FULL, SLIDING}:
        keys.note(f"layer_types={kinds!r}", f"must name {FULL} or {SLIDING} for each of {depth} layers")
        return (None,) * depth
    if SLIDING not in kinds:
        return (None,) * depth
    width = keys.integer("sliding_window")
    return tuple(width if kind == SLIDING else None for kind in kinds)
