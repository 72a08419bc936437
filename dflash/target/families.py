"""Small targets with random weights, one per model family, and the shape of the embedded one.

Everything that must hold for any target is tested on these; they cost milliseconds. A family is a function that gives
its configuration.
"""

from __future__ import annotations

from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)


def gpt_oss_config(
    *,
    vocab_size: int,
    num_layers: int = 8,
    hidden_size: int = 192,
    intermediate_size: int = 160,
    num_experts: int = 4,
    num_experts_per_token: int = 2,
    num_heads: int = 3,
    num_kv_heads: int = 1,
    head_dim: int = 64,
    sliding_window: int = 128,
    pretrained_length: int = 512,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> GptOssConfig:
    """A gpt-oss shape: mixture of experts, sinks, sliding and full layers in turn, YaRN times 32.

    The defaults are the embedded target's.
    """
    return GptOssConfig(
        vocab_size=vocab_size,
        num_hidden_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_local_experts=num_experts,
        num_experts_per_tok=num_experts_per_token,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        sliding_window=sliding_window,
        max_position_embeddings=32 * pretrained_length,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": pretrained_length,
        },
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def qwen3_config(
    *,
    vocab_size: int,
    num_layers: int = 8,
    hidden_size: int = 192,
    intermediate_size: int = 640,
    num_heads: int = 3,
    num_kv_heads: int = 1,
    head_dim: int = 64,
    pretrained_length: int = 512,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> Qwen3Config:
    """A Qwen3 shape: dense, QK-norm, full attention. The defaults have about the embedded target's parameters."""
    return Qwen3Config(
        vocab_size=vocab_size,
        num_hidden_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=32 * pretrained_length,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )


def build_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Random weights for ``config``, fp32; the caller seeds torch."""
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def tiny_gpt_oss(vocab_size: int) -> GptOssConfig:
    """gpt-oss with a window that a few dozen tokens pass."""
    return gpt_oss_config(
        vocab_size=vocab_size,
        num_layers=4,
        hidden_size=32,
        intermediate_size=16,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        sliding_window=16,
        pretrained_length=64,
    )


def tiny_qwen3(vocab_size: int) -> Qwen3Config:
    """Qwen3: dense, QK-norm, full attention."""
    return Qwen3Config(**_dense(vocab_size), head_dim=8)


def tiny_qwen3_moe(vocab_size: int) -> Qwen3MoeConfig:
    """Qwen3-MoE: mixture of experts, QK-norm, full attention."""
    return Qwen3MoeConfig(
        **_dense(vocab_size), head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    )


def tiny_llama(vocab_size: int) -> LlamaConfig:
    """Llama: dense, full attention."""
    return LlamaConfig(**_dense(vocab_size))


def tiny_mistral(vocab_size: int) -> MistralConfig:
    """Mistral's first: every layer slides, and the configuration has no layer types to say so."""
    return MistralConfig(**_dense(vocab_size), head_dim=8, sliding_window=16)


def tiny_gemma2(vocab_size: int) -> Gemma2Config:
    """Gemma 2: scaled embeddings, soft caps on attention scores and on logits, sliding and full layers in turn."""
    return Gemma2Config(
        **_dense(vocab_size),
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=16,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,  # small, so that leaving it out shows
    )


def tiny_gemma3(vocab_size: int) -> Gemma3TextConfig:
    """Gemma 3, text: scaled embeddings, QK-norm, one full layer in four here, a rotary base per layer type."""
    return Gemma3TextConfig(
        **_dense(vocab_size), head_dim=8, query_pre_attn_scalar=8, sliding_window=16, sliding_window_pattern=4
    )


def tiny_qwen3_next(vocab_size: int) -> Qwen3NextConfig:
    """Qwen3-Next: three recurrent layers (gated delta rule) to one of attention, mixture of experts."""
    return Qwen3NextConfig(
        **_dense(vocab_size),
        **_DELTA,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )


def tiny_qwen3_5(vocab_size: int) -> Qwen3_5TextConfig:
    """Qwen3.5, text: the same layers, dense."""
    return Qwen3_5TextConfig(
        **_dense(vocab_size),
        **_DELTA,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 0, 0]},
    )


def tiny_lfm2(vocab_size: int) -> Lfm2Config:
    """LFM2: short convolutions, whose state is their last inputs, between layers of attention."""
    types = ["conv", "full_attention", "conv", "full_attention"]
    return Lfm2Config(**_dense(vocab_size), layer_types=types, block_auto_adjust_ff_dim=False)


_DELTA = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _dense(vocab_size: int) -> dict:
    return {
        "vocab_size": vocab_size,
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


FAMILIES = {
    "gpt_oss": tiny_gpt_oss,
    "qwen3": tiny_qwen3,
    "qwen3_moe": tiny_qwen3_moe,
    "llama": tiny_llama,
    "mistral": tiny_mistral,
    "gemma2": tiny_gemma2,
    "gemma3": tiny_gemma3,
    "qwen3_next": tiny_qwen3_next,
    "qwen3_5": tiny_qwen3_5,
    "lfm2": tiny_lfm2,
}
