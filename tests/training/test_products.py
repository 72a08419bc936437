"""The switch of float32 products: thrown inside, and back again whatever happens."""

from __future__ import annotations

import pytest
import torch

from dflash.training.products import product_precision


def test_the_switch_goes_back_whatever_happens():
    with pytest.raises(RuntimeError), product_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == "highest"


def test_products_stay_near_those_of_full_precision():
    """To within the rounding of bf16, with or without a unit for it."""
    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    with product_precision("medium"):
        found = a @ b
    assert (found - a @ b).abs().max() < 1.0
    assert (found - a @ b).norm() / found.norm() < 2**-7
