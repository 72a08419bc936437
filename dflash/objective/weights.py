"""Weightings: how much each slot of a block counts in the loss.

A weighting maps what the draft says of the labels (its confidence in them, and whether its argmax hits them) and which
slots count to weights. Weights carry no gradient. Letters: M blocks, P = K - 1 predicted slots.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (confidence_MP in 0..1, hits_MP bool, mask_MP bool) -> weights_MP >= 0, 0 where masked
Weighting = Callable[[Tensor, Tensor, Tensor], Tensor]


def uniform() -> Weighting:
    """Every slot counts the same."""
    return lambda confidence_MP, hits_MP, mask_MP: mask_MP.to(confidence_MP.dtype)


def decay(*, gamma: float | None = None) -> Weighting:
    """w_k = exp(-(k - 1) / gamma), k = 1 .. K - 1 (paper section 4.2).

    ``gamma`` defaults by block size: 4, 5, 7 for K = 8, 10, 16, in between by a straight line.
    """
    if gamma is not None and gamma <= 0:
        raise ValueError(f"objective.weighting.gamma={gamma}: must be above 0, or null for the value by block size")

    def weigh(confidence_MP: Tensor, hits_MP: Tensor, mask_MP: Tensor) -> Tensor:
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

    q_i is the confidence. Slots that do not count are neutral in the product and out of the sum. w_k is the product of
    the two variants below: how likely slots 1 .. k are all accepted, times the tokens that this opens up.
    """
    _check_alpha(alpha)

    def weigh(confidence_MP: Tensor, hits_MP: Tensor, mask_MP: Tensor) -> Tensor:
        survival = _smoothed(confidence_MP, mask_MP, alpha).cumprod(-1) * mask_MP
        return survival.flip(-1).cumsum(-1).flip(-1) * mask_MP

    return weigh


def dpace_confidence(*, alpha: float = 0.5) -> Weighting:
    """D-PACE's first variant, cumulative confidence alone: w_k = P_k, how likely slots 1 .. k are all accepted."""
    _check_alpha(alpha)

    def weigh(confidence_MP: Tensor, hits_MP: Tensor, mask_MP: Tensor) -> Tensor:
        return _smoothed(confidence_MP, mask_MP, alpha).cumprod(-1) * mask_MP

    return weigh


def dpace_continuation(*, alpha: float = 0.5) -> Weighting:
    """D-PACE's second variant, continuation value alone: w_k = sum_{j>=k} P_j / P_k, the tokens slot k opens up."""
    _check_alpha(alpha)

    def weigh(confidence_MP: Tensor, hits_MP: Tensor, mask_MP: Tensor) -> Tensor:
        smoothed = _smoothed(confidence_MP, mask_MP, alpha)
        values = [mask_MP[:, -1].to(smoothed.dtype)]
        for k in range(mask_MP.shape[-1] - 2, -1, -1):  # no division: P_k may be 0 where alpha is
            values.append(mask_MP[:, k] + smoothed[:, k + 1] * values[-1])
        return torch.stack(values[::-1], dim=-1) * mask_MP

    return weigh


def until_first_error(*, inner: Weighting | None = None) -> Weighting:
    """Slots behind the first wrong one count for nothing (Spec-AUF, arXiv 2607.01893): decoding throws them away.

    The first wrong slot itself counts. The others weigh as ``inner`` (None: uniform) weighs a block that ends there.
    """
    weigh_inner = inner if inner is not None else uniform()

    def weigh(confidence_MP: Tensor, hits_MP: Tensor, mask_MP: Tensor) -> Tensor:
        misses = (~hits_MP & mask_MP).long()
        reached = misses.cumsum(-1) - misses == 0  # no miss before this slot
        return weigh_inner(confidence_MP, hits_MP, mask_MP & reached)

    return weigh


def _smoothed(confidence_MP: Tensor, mask_MP: Tensor, alpha: float) -> Tensor:
    return ((1 - alpha) * confidence_MP.detach() + alpha).masked_fill(~mask_MP, 1.0)


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"objective.weighting.alpha={alpha}: must be between 0 and 1; try 0.5")
