"""Weightings and terms alone: known values, gradients that stay out, bounds."""

from __future__ import annotations

import math

import pytest
import torch

from dflash.objective.terms import ForwardKL
from dflash.objective.weights import (
    decay,
    default_gamma,
    dpace,
    dpace_confidence,
    dpace_continuation,
    uniform,
    until_first_error,
)

CONFIDENCE = torch.tensor([[0.5, 0.2, 0.9, 0.4]])
ALL = torch.ones(1, 4, dtype=torch.bool)
HITS = torch.tensor([[True, False, True, False]])
TAIL = torch.tensor([[True, True, False, False]])


def test_the_papers_gammas():
    assert {size: default_gamma(size) for size in (8, 10, 16)} == {8: 4, 10: 5, 16: 7}
    gammas = [default_gamma(size) for size in range(2, 40)]
    assert gammas == sorted(gammas)
    assert min(gammas) >= 1


def test_decay():
    expected = torch.tensor([[math.exp(-k / 4) for k in range(4)]])
    torch.testing.assert_close(decay(gamma=4)(CONFIDENCE, HITS, ALL), expected)
    torch.testing.assert_close(decay(gamma=4)(CONFIDENCE, HITS, TAIL), expected * TAIL)
    every = torch.ones(1, 7, dtype=torch.bool)
    seven = decay()(torch.ones(1, 7), every, every)  # block size 8: gamma 4
    torch.testing.assert_close(seven[0, 4], torch.tensor(math.exp(-1)))


def test_dpace():
    s = [0.75, 0.6, 0.95, 0.7]  # half of q plus half
    p = [s[0], s[0] * s[1], s[0] * s[1] * s[2], s[0] * s[1] * s[2] * s[3]]
    expected = torch.tensor([[sum(p), sum(p[1:]), sum(p[2:]), p[3]]])
    torch.testing.assert_close(dpace()(CONFIDENCE, HITS, ALL), expected)
    torch.testing.assert_close(dpace()(CONFIDENCE, HITS, TAIL), torch.tensor([[p[0] + p[1], p[1], 0.0, 0.0]]))
    # alpha 1 forgets the draft: every slot that counts weighs the slots from itself on
    torch.testing.assert_close(dpace(alpha=1.0)(CONFIDENCE, HITS, ALL), torch.tensor([[4.0, 3.0, 2.0, 1.0]]))


def test_the_variants_of_dpace():
    s = [0.75, 0.6, 0.95, 0.7]
    confidence = torch.tensor([[s[0], s[0] * s[1], s[0] * s[1] * s[2], s[0] * s[1] * s[2] * s[3]]])
    torch.testing.assert_close(dpace_confidence()(CONFIDENCE, HITS, ALL), confidence)
    torch.testing.assert_close(dpace_confidence()(CONFIDENCE, HITS, TAIL), confidence * TAIL)
    value = torch.tensor([[1 + s[1] * (1 + s[2] * (1 + s[3])), 1 + s[2] * (1 + s[3]), 1 + s[3], 1]])
    torch.testing.assert_close(dpace_continuation()(CONFIDENCE, HITS, ALL), value)
    torch.testing.assert_close(dpace_continuation()(CONFIDENCE, HITS, TAIL), torch.tensor([[1 + s[1], 1, 0, 0]]))


def test_dpace_is_the_product_of_its_variants_also_around_holes():
    generator = torch.Generator().manual_seed(0)
    confidence, mask = torch.rand(40, 7, generator=generator), torch.rand(40, 7, generator=generator) < 0.7
    parts = [build(alpha=0.3)(confidence, mask, mask) for build in (dpace_confidence, dpace_continuation)]
    torch.testing.assert_close(parts[0] * parts[1], dpace(alpha=0.3)(confidence, mask, mask))


def test_continuation_survives_a_confidence_of_zero():
    weights = dpace_continuation(alpha=0.0)(torch.zeros(1, 4), HITS, ALL)
    assert weights.tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize("build", [dpace, dpace_confidence, dpace_continuation])
def test_dpace_weights_carry_no_gradient(build):
    assert not build()(CONFIDENCE.clone().requires_grad_(), HITS, ALL).requires_grad


def test_until_first_error_keeps_the_wrong_slot_and_drops_those_behind_it():
    never, at_once = torch.ones_like(HITS), torch.zeros_like(HITS)
    weigh = until_first_error()
    assert weigh(CONFIDENCE, HITS, ALL).tolist() == [[1, 1, 0, 0]]
    assert weigh(CONFIDENCE, never, ALL).tolist() == [[1, 1, 1, 1]]
    assert weigh(CONFIDENCE, at_once, ALL).tolist() == [[1, 0, 0, 0]]
    assert weigh(CONFIDENCE, never & TAIL, TAIL).tolist() == [[1, 1, 0, 0]]


def test_until_first_error_hands_the_shorter_block_to_its_inner_weighting():
    cut = until_first_error(inner=dpace())(CONFIDENCE, HITS, ALL)
    torch.testing.assert_close(cut, dpace()(CONFIDENCE, HITS, TAIL))
    assert not torch.allclose(cut, dpace()(CONFIDENCE, HITS, ALL) * TAIL)


def test_uniform():
    assert uniform()(CONFIDENCE, HITS, TAIL).tolist() == [[1, 1, 0, 0]]


def test_kl_at_a_temperature_keeps_the_size_of_its_gradient():
    """Hinton's square of the temperature: for small differences the loss hardly depends on it."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(50, 7, 20, generator=generator) * 0.1
    draft = target + 0.01 * torch.randn(50, 7, 20, generator=generator)
    draft = draft.log_softmax(-1)
    labels = torch.zeros(50, 7, dtype=torch.long)
    cold, warm = (float(ForwardKL(temperature=t)(draft, labels, target).mean()) for t in (1.0, 4.0))
    assert cold > 0
    assert warm == pytest.approx(cold, rel=0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: decay(gamma=0), r"objective\.weighting\.gamma=0: must be above 0"),
        (lambda: dpace(alpha=1.5), r"objective\.weighting\.alpha=1\.5: must be between 0 and 1"),
        (lambda: dpace_confidence(alpha=-1), r"objective\.weighting\.alpha=-1: must be between 0 and 1"),
        (lambda: dpace_continuation(alpha=2), r"objective\.weighting\.alpha=2: must be between 0 and 1"),
        (lambda: ForwardKL(temperature=0), r"temperature=0: must be above 0"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
