"""Intervals of arms and of paired differences: the bootstrap over prompts and seeds, crossed.

Every seed's draft decodes the same prompts, so a resample draws seeds and prompts each by themselves, and both arms of
a difference get the same draws. That is what pairs them: a hard prompt is hard for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
Statistic = Callable[[np.ndarray], np.ndarray]  # sums [..., C] -> [...]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 above and -1 below zero with all of the interval, else 0: not told apart from zero."""
        return int(self.low > 0) - int(self.high < 0)


def acceptance(sums: np.ndarray) -> np.ndarray:
    """Mean acceptance length of [tokens, rounds]."""
    return sums[..., 0] / sums[..., 1]


def speedup(sums: np.ndarray) -> np.ndarray:
    """By total tokens, of [tokens, seconds] of the baseline and [tokens, seconds] of the draft's decoding."""
    return (sums[..., 2] / sums[..., 3]) / (sums[..., 0] / sums[..., 1])


def estimate(sample_SPC: np.ndarray, statistic: Statistic, *, seed: int = 0) -> Estimate:
    """The statistic of all seeds and prompts together. ``sample_SPC``: what each seed's draft did on each prompt."""
    draws = statistic(_resampled(sample_SPC, seed=seed))
    return _with_interval(float(statistic(sample_SPC.sum((0, 1)))), draws)


def difference(sample_SPC: np.ndarray, other_SPC: np.ndarray, statistic: Statistic, *, seed: int = 0) -> Estimate:
    """The statistic of the first less that of the second, in pairs: same seeds and same prompts in both.

    Raises ValueError where they are not of one shape.
    """
    if sample_SPC.shape != other_SPC.shape:
        raise ValueError(f"shapes {sample_SPC.shape} and {other_SPC.shape}: pairs need the same seeds and prompts")
    value = statistic(sample_SPC.sum((0, 1))) - statistic(other_SPC.sum((0, 1)))
    draws = statistic(_resampled(sample_SPC, seed=seed)) - statistic(_resampled(other_SPC, seed=seed))
    return _with_interval(float(value), draws)


def _resampled(sample_SPC: np.ndarray, *, seed: int) -> np.ndarray:
    """Sums over resampled seeds and prompts, [R, C]; equal draws for equal shapes."""
    S, P, _ = sample_SPC.shape
    generator = np.random.default_rng(seed)
    seeds_RS, prompts_RP = (_counts(generator, size) for size in (S, P))
    return np.einsum("rs,rp,spc->rc", seeds_RS, prompts_RP, sample_SPC, optimize=True)


def _counts(generator: np.random.Generator, size: int) -> np.ndarray:
    """How often each of ``size`` things is drawn in each resample, [R, size]."""
    return generator.multinomial(size, np.full(size, 1 / size), size=NUM_RESAMPLES).astype(np.float64)


def _with_interval(value: float, draws: np.ndarray) -> Estimate:
    finite: Sequence[float] = draws[np.isfinite(draws)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (float("nan"), float("nan"))
    return Estimate(value, float(low), float(high))
