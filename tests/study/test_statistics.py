"""Crossed bootstrap: intervals that hold what they should, and pairs that are told apart where means are not."""

from __future__ import annotations

import numpy as np
import pytest

from dflash.study.statistics import Estimate, acceptance, difference, estimate, speedup


def rounds(seed: int, *, mean: float = 3.0, prompts: int = 32, seeds: int = 3, hard: float = 1.0) -> np.ndarray:
    """[seeds, prompts, (tokens, rounds)] of drafts on prompts some of which are harder than others."""
    generator = np.random.default_rng(seed)
    count = np.full((seeds, prompts), 20.0)
    lengths = mean + hard * generator.normal(size=prompts) + 0.05 * generator.normal(size=(seeds, prompts))
    return np.stack([lengths * count, count], axis=-1)


def test_values_are_pooled_over_seeds_and_prompts():
    sample = np.array([[[6, 2], [4, 4]], [[8, 2], [2, 2]]], dtype=float)
    assert estimate(sample, acceptance).value == 20 / 10
    timed = np.array([[[10, 1.0, 10, 0.5], [10, 3.0, 10, 1.5]]])
    found = estimate(timed, speedup)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    hits = sum(e.low <= 3 <= e.high for e in (estimate(rounds(seed, seeds=1), acceptance) for seed in range(60)))
    assert 50 <= hits <= 60  # 95 %; 32 prompts make a percentile interval a little narrow


def test_an_effect_smaller_than_the_spread_of_prompts_shows_in_pairs_only():
    base = rounds(0)
    better = base.copy()
    better[..., 0] += 0.1 * base[..., 1]
    found = difference(better, base, acceptance)
    assert found.value == pytest.approx(0.1) and found.sign == 1
    assert estimate(better, acceptance).low < estimate(base, acceptance).high
    unpaired = difference(better, rounds(1), acceptance)
    assert unpaired.high - unpaired.low > 5 * (found.high - found.low)
    assert difference(base, better, acceptance).sign == -1


def test_nothing_differs_from_itself_and_draws_repeat():
    base = rounds(2)
    assert difference(base, base, acceptance) == Estimate(0.0, 0.0, 0.0) and Estimate(0.0, 0.0, 0.0).sign == 0
    assert estimate(base, acceptance) == estimate(base, acceptance)


def test_seeds_that_disagree_widen_the_interval():
    agree = rounds(3, hard=0.0)
    apart = agree.copy()
    apart[..., 0] *= np.array([0.8, 1.0, 1.2])[:, None]
    widths = [e.high - e.low for e in (estimate(agree, acceptance), estimate(apart, acceptance))]
    assert widths[1] > 10 * widths[0]


def test_pairs_of_other_prompts_are_refused():
    with pytest.raises(ValueError, match="pairs need the same seeds and prompts"):
        difference(rounds(0), rounds(0, prompts=8), acceptance)
