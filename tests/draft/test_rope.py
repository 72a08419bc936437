"""Rotary positions equal transformers' own for every kind a target may bring."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from dflash.draft.rope import Rotary, rope_frequencies, rotate

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
KINDS = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 8192},
    "yarn": {**YARN, "rope_theta": 1000000.0},
    "yarn, gpt-oss": {**YARN, "rope_theta": 150000.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    "yarn, DeepSeek": {**YARN, "rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn, given factor": {**YARN, "rope_theta": 10000.0, "attention_factor": 1.25},
}


def config_of(parameters: dict, head_dim: int) -> LlamaConfig:
    length = round(parameters.get("original_max_position_embeddings", 2048) * parameters.get("factor", 1))
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=length,
        rope_parameters=dict(parameters),
    )


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_equal_transformers(kind, head_dim):
    parameters = KINDS[kind]
    config = config_of(parameters, head_dim)
    initialise = ROPE_INIT_FUNCTIONS.get(parameters["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    expected, expected_scale = initialise(config, device=torch.device("cpu"))
    found, scale = rope_frequencies(parameters, head_dim=head_dim)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)
    assert scale == pytest.approx(expected_scale, abs=1e-9)


@pytest.mark.parametrize("kind", ["default", "yarn, gpt-oss"])
def test_rotation_equals_transformers(kind):
    rotary = LlamaRotaryEmbedding(config_of(KINDS[kind], 16))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 16, generator=generator)  # batch, heads, positions, head_dim
    positions = torch.randint(0, 3000, (2, 7), generator=generator)
    expected, _ = apply_rotary_pos_emb(x, x, *rotary(x, positions))
    cos, sin = Rotary(KINDS[kind], head_dim=16)(positions)
    torch.testing.assert_close(rotate(x, cos[:, None], sin[:, None]), expected, atol=1e-5, rtol=1e-5)


def test_an_unknown_kind_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"rope_type='longrope'.*default.*yarn"):
        rope_frequencies({"rope_type": "longrope", "rope_theta": 1e4}, head_dim=8)


def test_rotary_has_no_weights():
    assert not Rotary(KINDS["default"], head_dim=8).state_dict()
