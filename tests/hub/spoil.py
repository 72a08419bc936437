"""Drafts of every kind that a format must hold, and ways to spoil the folder of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dflash.draft.draft import Draft
from dflash.draft.shape import DraftShape
from dflash.hub.bundle import EMBEDDING, HEAD, Bundle, TargetFacts

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1000000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
    },
}
SHAPE = DraftShape(
    hidden_size=32,
    intermediate_size=48,
    depth=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    attention_bias=True,
    rms_norm_eps=1e-5,
    rope_parameters=ROPES["yarn"],
    max_position_embeddings=2048,
    num_target_layers=6,
    taps=(1, 4),
    layout=(None, None),
    block_size=4,
    mask_token_id=61,
)
SHAPES = {
    "bias, yarn": SHAPE,
    "plain": replace(SHAPE, attention_bias=False, rope_parameters=ROPES["default"]),
    "sliding and full": replace(SHAPE, layout=(9, None), rope_parameters=ROPES["llama3"]),
    "all sliding": replace(SHAPE, layout=(9, 9), rope_parameters=ROPES["linear"], depth=2),
    "one layer, one tap": replace(SHAPE, depth=1, layout=(None,), taps=(3,), num_kv_heads=4),
}
FACTS = TargetFacts(64, "somebody/target", ("GptOssForCausalLM",), 60, [62, 63])


def make_bundle(shape: DraftShape = SHAPE, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Bundle:
    """A random draft of this shape, norms and biases random, too."""
    torch.manual_seed(seed)
    weights = {name: torch.randn_like(value).to(dtype) * 0.3 for name, value in Draft(shape).state_dict().items()}
    size = FACTS.vocab_size, shape.hidden_size
    return Bundle(shape, FACTS, weights, {EMBEDDING: torch.randn(size).to(dtype), HEAD: torch.randn(size).to(dtype)})


def edit_config(folder: Path, *, drop: tuple[str, ...] = (), **changes) -> None:
    """Change top-level keys of a folder's config.json; mappings are merged."""
    config = json.loads((folder / "config.json").read_text())
    for key in drop:
        del config[key]
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) and isinstance(config.get(key), dict) else value
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Callable[[dict], None]) -> None:
    """Apply ``change`` to a folder's tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
