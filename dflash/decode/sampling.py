"""Choosing tokens: greedily, or by temperature sampling from counter-based random numbers.

The random number of a choice depends on (seed, prompt index, stream, position) alone: never on the batch a prompt is
in, nor on how many tokens a round accepted. So sampled output is reproducible and batch-independent, and verification
by match gives token for token what the autoregressive loop samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dflash.argmax import argmax
from dflash.target.warpers import Warper, make_warper


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy, and then nothing else matters. top_k, top_p, min_p: ``make_warper``; None is off.

    Raises ValueError for values out of bounds.
    """

    temperature: float = 0.0
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    _warp: Warper | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"decoding.temperature={self.temperature}: must be 0 (greedy) or above")
        warp = make_warper(top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)
        object.__setattr__(self, "_warp", warp)  # frozen: the one way to keep what the values make

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., V] float64, so that inverse-CDF sampling is exact to far below one in a million."""
        scaled = logits.double() / self.temperature
        return (scaled if self._warp is None else self._warp(scaled)).softmax(-1)

    def choose(self, logits: Tensor, uniforms: Tensor | None) -> Tensor:
        """[..., V] -> long [...]: argmax, or the inverse CDF at ``uniforms`` [...]."""
        if self.greedy:
            return argmax(logits)
        return draw(self.probabilities(logits), uniforms)


def draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF draw from unnormalised ``weights`` [..., V] at ``uniforms`` [...] in [0, 1): long [...].

    A token of weight zero is never drawn.
    """
    cdf = weights.double().cumsum(-1)
    at = (uniforms.double() * cdf[..., -1]).unsqueeze(-1)
    return torch.searchsorted(cdf, at, right=True).squeeze(-1).clamp_(max=weights.shape[-1] - 1)


class Uniforms:
    """Random numbers in [0, 1) for a batch of prompts, by stream and position: float64 [B, length] a stream."""

    STREAMS = ("target", "draft", "accept")

    def __init__(self, sampling: Sampling, *, indices: Sequence[int], length: int, device: torch.device):
        self.tables = {}
        if not sampling.greedy:
            for stream in self.STREAMS:
                rows = [_philox(sampling.seed, index, stream).random(length) for index in indices]
                self.tables[stream] = torch.from_numpy(np.stack(rows)).to(device)

    def at(self, stream: str, start_B: Tensor, count: int) -> Tensor | None:
        """[B, count]: the numbers of positions start_B[b] .. start_B[b] + count - 1; None when greedy."""
        if not self.tables:
            return None
        index_BC = start_B[:, None] + torch.arange(count, device=start_B.device)
        return self.tables[stream].gather(1, index_BC)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self.tables = {stream: table[rows] for stream, table in self.tables.items()}

    def join(self, other: Uniforms) -> None:
        """The rows of ``other``, of as many positions, come behind those here."""
        self.tables = {stream: torch.cat([table, other.tables[stream]]) for stream, table in self.tables.items()}


def _philox(seed: int, index: int, stream: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{index}/{stream}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
