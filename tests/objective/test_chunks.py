"""Sums over chunks: the gradient taken in the forward pass is the gradient of the whole, for all that is trained."""

from __future__ import annotations

import pytest
import torch

from dflash.objective.chunks import sum_chunks


@pytest.fixture
def case():
    """(hidden_MPH, weight_HV, evaluate): a sum that reads the hidden states and a trained weight."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 11, generator=generator, dtype=torch.float64, requires_grad=True)

    def evaluate(hidden_MPH, part):
        logits = hidden_MPH @ weight
        return torch.stack([logits.logsumexp(-1).square().sum(), logits.sum(), logits.new_tensor(len(hidden_MPH))])

    return hidden, weight, evaluate


@pytest.mark.parametrize("chunk_blocks", [1, 3, 7, 100])
def test_sums_and_gradients_equal_those_of_the_whole(case, chunk_blocks):
    hidden, weight, evaluate = case
    whole = evaluate(hidden, slice(None))
    expected = torch.autograd.grad(3 * whole[0], (hidden, weight))
    sums = sum_chunks(evaluate, hidden, chunk_blocks=chunk_blocks, parameters=[weight])
    torch.testing.assert_close(sums, whole)
    assert sums[2] == 7
    torch.testing.assert_close(torch.autograd.grad(3 * sums[0], (hidden, weight)), expected)


def test_the_other_sums_carry_no_gradient(case):
    hidden, weight, evaluate = case
    sums = sum_chunks(evaluate, hidden, chunk_blocks=2, parameters=[weight])
    (gradient,) = torch.autograd.grad(sums[1], hidden)
    assert not gradient.any()


def test_without_gradients_nothing_is_differentiated(case):
    hidden, weight, evaluate = case
    with torch.no_grad():
        sums = sum_chunks(evaluate, hidden, chunk_blocks=2, parameters=[weight])
    assert not sums.requires_grad
    torch.testing.assert_close(sums, evaluate(hidden, slice(None)).detach())
