"""Rotary positions for the draft, from the target's own rope parameters (plain, linear, Llama 3 and YaRN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """cos and sin for absolute positions; no weights."""

    def __init__(self, parameters: dict, *, head_dim: int):
        super().__init__()
        frequencies, self.scale = rope_frequencies(parameters, head_dim=head_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions long [...] -> (cos, sin), each fp32 [..., head_dim / 2]."""
        angles = positions[..., None].float() * self.frequencies.float()
        return angles.cos() * self.scale, angles.sin() * self.scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [..., D] by (cos, sin) [..., D / 2], halves paired as in Llama and Qwen."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rope_frequencies(parameters: dict, *, head_dim: int) -> tuple[Tensor, float]:
    """(frequencies [head_dim / 2] in radians per position, factor on cos and sin), as transformers computes them."""
    kind = parameters.get("rope_type", "default")
    if kind not in _KINDS:
        raise ValueError(f"rope_type={kind!r} is not supported by the draft; it can be one of {sorted(_KINDS)}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    return _KINDS[kind](1.0 / parameters["rope_theta"] ** exponents, parameters, head_dim)


def _default(plain: Tensor, parameters: dict, head_dim: int) -> tuple[Tensor, float]:
    return plain, 1.0


def _linear(plain: Tensor, parameters: dict, head_dim: int) -> tuple[Tensor, float]:
    return plain / parameters["factor"], 1.0


def _llama3(plain: Tensor, parameters: dict, head_dim: int) -> tuple[Tensor, float]:
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * plain / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * plain / parameters["factor"] + smooth * plain, 1.0


def _yarn(plain: Tensor, parameters: dict, head_dim: int) -> tuple[Tensor, float]:
    """YaRN (2309.00071): slow dimensions interpolated, fast ones left alone, a ramp between."""
    factor, length = parameters["factor"], parameters["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(parameters["rope_theta"]))

    low, high = dimension(parameters.get("beta_fast") or 32), dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = ((torch.arange(head_dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    return frequencies, _yarn_scale(parameters, factor)


def _yarn_scale(parameters: dict, factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return parameters["attention_factor"]

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)


_KINDS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
