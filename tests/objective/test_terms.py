"""Terms one by one: values worked out by hand, gradients against finite differences, and how they hang together."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dflash.objective.terms import (
    CrossEntropy,
    ExpectedLength,
    FirstError,
    ForwardKL,
    ReverseKL,
    TotalVariation,
)
from dflash.objective.weights import dpace

TERMS = {
    "cross_entropy": CrossEntropy(),
    "forward_kl": ForwardKL(temperature=1.5),
    "reverse_kl": ReverseKL(temperature=0.7),
    "total_variation": TotalVariation(temperature=1.3),
    "first_error": FirstError(),
    "expected_length": ExpectedLength(),
}
DRAFT = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64).log()
TARGET = torch.tensor([[[0.2, 0.5, 0.3]]], dtype=torch.float64).log()
LABEL = torch.tensor([[1]])


def random_case(seed: int = 0):
    """(draft log-probabilities [3, 4, 6], labels [3, 4], target logits), float64; every second slot or so is right."""
    generator = torch.Generator().manual_seed(seed)
    logits, target = (torch.randn(3, 4, 6, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    labels = torch.randint(0, 6, (3, 4), generator=generator)
    right = torch.rand(3, 4, generator=generator) < 0.4
    return logits.log_softmax(-1), torch.where(right, logits.argmax(-1), labels), target


@pytest.mark.parametrize(
    ("term", "value"),
    [
        (CrossEntropy(), -math.log(0.3)),
        (ForwardKL(), 0.2 * math.log(0.4) + 0.5 * math.log(5 / 3) + 0.3 * math.log(1.5)),
        (ReverseKL(), 0.5 * math.log(2.5) + 0.3 * math.log(0.6) + 0.2 * math.log(2 / 3)),
        (TotalVariation(), (0.3 + 0.2 + 0.1) / 2),
        (FirstError(), -math.log(0.3)),  # the argmax is token 0, the label 1
        (ExpectedLength(), 1 - 0.3),
    ],
)
def test_values_by_hand(term, value):
    assert float(term(DRAFT, LABEL, TARGET)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("term", [ForwardKL(), ReverseKL(), TotalVariation()], ids=lambda term: type(term).__name__)
def test_divergences_are_whole_under_autocast(term):
    """Half precision has no difference of two like numbers to give."""
    draft, labels, target = (part.float() if part.is_floating_point() else part for part in random_case())
    expected = term(draft, labels, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(term(draft, labels, target), expected)


@pytest.mark.parametrize("term", [ForwardKL, ReverseKL, TotalVariation])
def test_distances_are_zero_at_the_target_and_obey_the_temperature(term):
    logits, labels, target = random_case()
    assert float(term(temperature=2.0)(target.log_softmax(-1), labels, target).abs().max()) < 1e-12
    assert float(term()(logits, labels, target).min()) > 0
    squared = 1 if term is TotalVariation else 9
    cool = term()((logits / 3).log_softmax(-1), labels, target / 3) * squared
    torch.testing.assert_close(term(temperature=3.0)(logits, labels, target), cool)


def test_reverse_kl_is_forward_kl_with_the_two_exchanged():
    logits, labels, target = random_case()
    exchanged = ForwardKL(temperature=1.7)(target.log_softmax(-1), labels, logits)
    torch.testing.assert_close(ReverseKL(temperature=1.7)(logits, labels, target), exchanged)


def test_total_variation_is_how_often_rejection_sampling_rejects():
    logits, labels, target = random_case()
    p, q = target.softmax(-1), logits.softmax(-1)
    accepted = (q * torch.minimum(torch.ones_like(p), p / q)).sum(-1)
    torch.testing.assert_close(TotalVariation()(logits, labels, target), 1 - accepted)


def test_first_error_picks_the_slot_that_ends_the_prefix():
    logits = torch.tensor([1.0, 0.0, 0.0]).log_softmax(-1).expand(3, 4, 3)  # the argmax is 0 everywhere
    labels = torch.tensor([[0, 2, 1, 0], [0, 0, 0, 0], [1, 0, 0, 2]])
    nats = math.log(math.e + 2)
    expected = torch.tensor([[0, nats, 0, 0], [0, 0, 0, 0], [nats, 0, 0, 0]])
    torch.testing.assert_close(FirstError()(logits.log_softmax(-1), labels, None), expected)


def test_expected_length_sums_to_the_slots_less_the_mean_number_accepted():
    logits, labels, _ = random_case()
    loss = ExpectedLength()(logits.log_softmax(-1), labels, None)
    chances = logits.softmax(-1).gather(-1, labels[..., None])[..., 0]
    for row, block in enumerate(chances.tolist()):
        mean = 0.0
        for pattern in itertools.product([True, False], repeat=4):
            chance = math.prod(q if hit else 1 - q for hit, q in zip(pattern, block, strict=True))
            mean += chance * sum(itertools.accumulate(map(int, pattern), lambda a, b: a * b))
        assert float(loss[row].sum()) == pytest.approx(4 - mean)


def test_expected_length_has_the_gradient_of_cross_entropy_under_dpace_without_smoothing():
    logits, labels, _ = random_case()
    chain, weighted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    ExpectedLength()(chain.log_softmax(-1), labels, None).sum().backward()
    chances = logits.softmax(-1).gather(-1, labels[..., None])[..., 0]
    everything = torch.ones_like(labels, dtype=torch.bool)
    (
        CrossEntropy()(weighted.log_softmax(-1), labels, None) * dpace(alpha=0.0)(chances, everything, everything)
    ).sum().backward()
    torch.testing.assert_close(chain.grad, weighted.grad)
    assert chain.grad.abs().max() > 1e-2


@pytest.mark.parametrize("name", TERMS)
def test_gradients_equal_finite_differences(name):
    logits, labels, target = random_case(seed=1)
    assert torch.autograd.gradcheck(lambda x: TERMS[name](x, labels, target), logits.requires_grad_())
    assert TERMS[name].needs_target == (name in ("forward_kl", "reverse_kl", "total_variation"))


@pytest.mark.parametrize("term", [ForwardKL, ReverseKL, TotalVariation])
def test_a_temperature_of_zero_is_refused(term):
    with pytest.raises(ValueError, match=r"objective\.terms\.[a-z_]+\.temperature=0: must be above 0; try 1\.0"):
        term(temperature=0)
