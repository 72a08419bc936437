"""The likeliest token, found faster than Tensor.argmax finds it, is the same one."""

from __future__ import annotations

import pytest
import torch

from dflash.argmax import argmax


@pytest.mark.parametrize("shape", [(7,), (1, 4096), (8, 4096), (2, 7, 1000)])
def test_it_is_the_one_that_tensor_argmax_finds(shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(argmax(logits), logits.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_of_equals_is_taken(dtype):
    logits = torch.zeros(3, 4096, dtype=dtype)
    logits[0, [17, 900]] = logits[1, [4000, 4095]] = 1.0
    assert argmax(logits).tolist() == [17, 4000, 0]


def test_no_gradient_follows_it():
    logits = torch.randn(2, 5, requires_grad=True)
    assert not argmax(logits).requires_grad
