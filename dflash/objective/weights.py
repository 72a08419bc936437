"""Weightings: how much each slot of a block counts in the loss.

A weighting maps the draft's confidence in the labels, and which slots count, to weights. Confidence is detached:
weights carry no gradient. Letters: M blocks, P = K - 1 predicted slots.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weighting = Callable[[Tensor, Tensor], Tensor]  # (confidence_MP in 0..1, mask_MP bool) -> weights_MP, 0 where masked


def uniform() -> Weighting:
    """Every slot counts the same."""
    return lambda confidence_MP, mask_MP: mask_MP.to(confidence_MP.dtype)


def decay(*, gamma: float | None = None) -> Weighting:
    """w_k = exp(-(k - 1) / gamma), k = 1 .. K - 1 (paper section 4.2).

    ``gamma`` defaults by block size: 4, 5, 7 for K = 8, 10, 16, in between by a straight line.
    """
    if gamma is not None and gamma <= 0:
        raise ValueError(f"objective.weighting.gamma={gamma}: must be above 0, or null for the value by block size")

    def weigh(confidence_MP: Tensor, mask_MP: Tensor) -> Tensor:
        P = mask_MP.shape[-1]
        scale = gamma if gamma is not None else default_gamma(P + 1)
        steps_P = torch.arange(P, device=mask_MP.device, dtype=confidence_MP.dtype)
        return (-steps_P / scale).exp() * mask_MP

    return weigh


def default_gamma(block_size: int) -> float:
    """The paper's gamma for this block size: 4 up to 8, 5 at 10, 7 at 16 and in proportion beyond."""
    if block_size <= 8:
        return max(1.0, block_size / 2)
    if block_size <= 10:
        return 4 + (block_size - 8) / 2
    return 5 + (block_size - 10) / 3 if block_size <= 16 else 7 * block_size / 16


def dpace(*, alpha: float = 0.5) -> Weighting:
    """D-PACE (arXiv 2605.18810): s_i = (1 - alpha) q_i + alpha, P_i = prod_{j<=i} s_j, w_k = sum_{j>=k} P_j.

    Slots that do not count are neutral in the product and out of the sum.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"objective.weighting.alpha={alpha}: must be between 0 and 1")

    def weigh(confidence_MP: Tensor, mask_MP: Tensor) -> Tensor:
        smoothed = ((1 - alpha) * confidence_MP.detach() + alpha).masked_fill(~mask_MP, 1.0)
        survival = smoothed.cumprod(-1) * mask_MP
        return survival.flip(-1).cumsum(-1).flip(-1) * mask_MP

    return weigh
