"""The draft's RMSNorm: torch's own in one dtype, one fused kernel where masters and states differ."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from dflash.draft.norm import Norm


def test_in_one_dtype_it_is_torchs_own():
    x, norm, own = torch.randn(3, 8), Norm(8, eps=1e-5), nn.RMSNorm(8, eps=1e-5)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    own.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), own(x))


def test_states_of_lower_precision_stay_so_and_masters_learn_in_theirs():
    x, norm = torch.randn(3, 8).bfloat16(), Norm(8, eps=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it cannot dispatch to the fused kernel
        out = norm(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert norm.weight.grad.dtype == torch.float32
    torch.testing.assert_close(
        out.float(), x.float() * x.float().pow(2).mean(-1, keepdim=True).rsqrt(), rtol=1e-2, atol=1e-2
    )
