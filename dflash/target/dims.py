"""The shape of a target, as far as a draft is built from it."""

from __future__ import annotations

from dataclasses import dataclass

# For targets without rotary positions: a draft has them all the same.
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True)
class TargetDims:
    """``rope_parameters`` in transformers' form."""

    hidden_size: int
    num_layers: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_parameters: dict
    max_position_embeddings: int
    attention_bias: bool


def dims_of(config) -> TargetDims:
    """Read the dimensions off a text configuration of transformers."""
    values = config.to_dict()
    missing = {"num_attention_heads", "num_key_value_heads", "max_position_embeddings"} - values.keys()
    if missing:
        raise ValueError(f"target: its configuration has no {', '.join(sorted(missing))}, which a draft is shaped by")
    heads = values["num_attention_heads"]
    rope = dict(values.get("rope_parameters") or _ROPE)
    rope = rope.get("full_attention", rope)  # where sliding layers turn at another base, a draft follows the full ones
    return TargetDims(
        hidden_size=values["hidden_size"],
        num_layers=config.num_hidden_layers,
        vocab_size=values["vocab_size"],
        num_heads=heads,
        num_kv_heads=values["num_key_value_heads"],
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        rms_norm_eps=values.get("rms_norm_eps", values.get("norm_eps")),
        rope_parameters=rope,
        max_position_embeddings=values["max_position_embeddings"],
        attention_bias=bool(values.get("attention_bias", False)),
    )
