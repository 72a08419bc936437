"""The experts of a mixture, as a CPU computes them fastest for the number of tokens there are.

At decoding's few tokens every expert goes over every token, in two batched products, even where half of the arithmetic
is thrown away: sorting tokens by expert costs more. At the many tokens of a prompt or of training one expert after the
other takes its tokens, in chunks whose states stay in the cache. What is between, and what is recorded, goes to
transformers (``grouped_mm``). ``target.experts=dense`` chooses all this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from dflash.replay import shapes_are_fixed

DENSE = "dense"
MOST_TOKENS = 64  # times experts computed for one that counts: on one core both then take the same time
MOST_WASTE = 4  # experts computed for one that counts
FEWEST_IN_TURN = 256  # tokens from which on experts in turn are faster than grouped
CHUNK_TOKENS = 1024


def dense_experts(module: nn.Module, hidden_NH: Tensor, index_NA: Tensor, weights_NA: Tensor) -> Tensor:
    """hidden [N, H] of N tokens, each with A experts, their ``index`` (long) and ``weights`` [N, A]
    -> [N, H]; ``module`` holds the stacked weights as transformers keeps them. The same as its other ways but for
    rounding."""
    N, E, A = hidden_NH.shape[0], module.num_experts, index_NA.shape[1]
    few = N * E <= MOST_TOKENS * A and E <= MOST_WASTE * A
    many = N >= FEWEST_IN_TURN and hidden_NH.device.type == "cpu" and not shapes_are_fixed()
    if not (few or many) or not module.has_gate or module.has_post_expert_norm or module._is_expert_parallel:
        return grouped_mm_experts_forward(module, hidden_NH, index_NA, weights_NA)
    if many:
        return _in_turn(module, hidden_NH, index_NA, weights_NA)
    up_ENI = _product(module, "gate_up_proj", hidden_NH.expand(E, N, -1))
    out_ENH = _product(module, "down_proj", module._apply_gate(up_ENI))
    share_NE = weights_NA.new_zeros(N, E).scatter_(1, index_NA, weights_NA)
    return (out_ENH * share_NE.t()[..., None]).sum(0).to(hidden_NH.dtype)


def _in_turn(module: nn.Module, hidden_NH: Tensor, index_NA: Tensor, weights_NA: Tensor) -> Tensor:
    """Each expert over its own tokens; the numbers are those of grouped products."""
    out_NH = torch.zeros_like(hidden_NH)
    chosen_C = index_NA.flatten()  # C = N * A choices of an expert by a token
    places_C = chosen_C.sort(stable=True).indices
    counts = torch.bincount(chosen_C, minlength=module.num_experts).tolist()
    for expert, places in enumerate(places_C.split(counts)):
        for chunk in places.split(CHUNK_TOKENS):
            tokens = chunk // index_NA.shape[1]
            up = _product(module, "gate_up_proj", hidden_NH[tokens], expert)
            out = _product(module, "down_proj", module._apply_gate(up), expert)
            out_NH.index_add_(0, tokens, (out * weights_NA.flatten()[chunk, None]).to(out_NH.dtype))
    return out_NH


def _product(module: nn.Module, name: str, states: Tensor, expert: int | None = None) -> Tensor:
    """[E, N, in] -> [E, N, out] by all experts, or [N, in] -> [N, out] by one."""
    weight = module.get_parameter(name)
    weight = weight if module.is_transposed else weight.transpose(1, 2)  # [E, in, out]
    bias = module.get_parameter(f"{name}_bias")[:, None] if module.has_bias else None
    if expert is None:
        return torch.bmm(states, weight) if bias is None else torch.baddbmm(bias, states, weight)
    return torch.mm(states, weight[expert]) if bias is None else torch.addmm(bias[expert], states, weight[expert])


def register_dense() -> None:
    """Make ``dense_experts`` known to transformers under its name."""
    ALL_EXPERTS_FUNCTIONS.register(DENSE, dense_experts)
