"""Weightings and terms alone: known values, gradients that stay out, bounds."""

from __future__ import annotations

import math

import pytest
import torch

from dflash.objective.terms import ForwardKL
from dflash.objective.weights import decay, default_gamma, dpace, uniform

CONFIDENCE = torch.tensor([[0.5, 0.2, 0.9, 0.4]])
ALL = torch.ones(1, 4, dtype=torch.bool)
TAIL = torch.tensor([[True, True, False, False]])


def test_the_papers_gammas():
    assert {size: default_gamma(size) for size in (8, 10, 16)} == {8: 4, 10: 5, 16: 7}
    gammas = [default_gamma(size) for size in range(2, 40)]
    assert gammas == sorted(gammas)
    assert min(gammas) >= 1


def test_decay():
    expected = torch.tensor([[math.exp(-k / 4) for k in range(4)]])
    torch.testing.assert_close(decay(gamma=4)(CONFIDENCE, ALL), expected)
    torch.testing.assert_close(decay(gamma=4)(CONFIDENCE, TAIL), expected * TAIL)
    seven = decay()(torch.ones(1, 7), torch.ones(1, 7, dtype=torch.bool))  # block size 8: gamma 4
    torch.testing.assert_close(seven[0, 4], torch.tensor(math.exp(-1)))


def test_dpace():
    s = [0.75, 0.6, 0.95, 0.7]  # half of q plus half
    p = [s[0], s[0] * s[1], s[0] * s[1] * s[2], s[0] * s[1] * s[2] * s[3]]
    expected = torch.tensor([[sum(p), sum(p[1:]), sum(p[2:]), p[3]]])
    torch.testing.assert_close(dpace()(CONFIDENCE, ALL), expected)
    torch.testing.assert_close(dpace()(CONFIDENCE, TAIL), torch.tensor([[p[0] + p[1], p[1], 0.0, 0.0]]))
    # alpha 1 forgets the draft: every slot that counts weighs the slots from itself on
    torch.testing.assert_close(dpace(alpha=1.0)(CONFIDENCE, ALL), torch.tensor([[4.0, 3.0, 2.0, 1.0]]))


def test_dpace_weights_carry_no_gradient():
    assert not dpace()(CONFIDENCE.clone().requires_grad_(), ALL).requires_grad


def test_uniform():
    assert uniform()(CONFIDENCE, TAIL).tolist() == [[1, 1, 0, 0]]


def test_kl_at_a_temperature_keeps_the_size_of_its_gradient():
    """Hinton's square of the temperature: for small differences the loss hardly depends on it."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(50, 7, 20, generator=generator) * 0.1
    draft = target + 0.01 * torch.randn(50, 7, 20, generator=generator)
    labels = torch.zeros(50, 7, dtype=torch.long)
    cold, warm = (float(ForwardKL(temperature=t)(draft, labels, target).mean()) for t in (1.0, 4.0))
    assert cold > 0
    assert warm == pytest.approx(cold, rel=0.1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: decay(gamma=0), r"objective\.weighting\.gamma=0: must be above 0"),
        (lambda: dpace(alpha=1.5), r"objective\.weighting\.alpha=1\.5: must be between 0 and 1"),
        (lambda: ForwardKL(temperature=0), r"temperature=0: must be above 0"),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
