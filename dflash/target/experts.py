"""The experts of a mixture at decoding's few tokens: every expert over every token, in two batched products.

Grouping tokens by expert (transformers' ``grouped_mm``) does only the work that counts, but sorts, gathers and
scatters for it. On a CPU a step of one token or a block of eight is faster without, even where half of the arithmetic
is thrown away. Larger passes go to transformers. ``target.experts=dense`` chooses this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

DENSE = "dense"
MOST_TOKENS = 16  # where both take the same time with 4 experts, 2 a token
MOST_WASTE = 4  # experts computed for one that counts


def dense_experts(module: nn.Module, hidden_NH: Tensor, index_NA: Tensor, weights_NA: Tensor) -> Tensor:
    """hidden [N, H] of N tokens, each with A experts, their ``index`` (long) and ``weights`` [N, A]
    -> [N, H]; ``module`` holds the stacked weights as transformers keeps them. The same as its other ways but for
    rounding."""
    N, E = hidden_NH.shape[0], module.num_experts
    few = N <= MOST_TOKENS and MOST_WASTE * index_NA.shape[1] >= E
    if not few or not module.has_gate or module.has_post_expert_norm or module._is_expert_parallel:
        return grouped_mm_experts_forward(module, hidden_NH, index_NA, weights_NA)
    up_ENI = _product(module, "gate_up_proj", hidden_NH.expand(E, N, -1))
    out_ENH = _product(module, "down_proj", module._apply_gate(up_ENI))
    share_NE = weights_NA.new_zeros(N, E).scatter_(1, index_NA, weights_NA)
    return (out_ENH * share_NE.t()[..., None]).sum(0).to(hidden_NH.dtype)


def _product(module: nn.Module, name: str, states_ENI: Tensor) -> Tensor:
    weight = module.get_parameter(name)
    weight = weight if module.is_transposed else weight.transpose(1, 2)  # [E, in, out]
    if not module.has_bias:
        return torch.bmm(states_ENI, weight)
    return torch.baddbmm(module.get_parameter(f"{name}_bias")[:, None], states_ENI, weight)


def register_dense() -> None:
    """Make ``dense_experts`` known to transformers under its name."""
    ALL_EXPERTS_FUNCTIONS.register(DENSE, dense_experts)
