"""Sums over chunks of blocks, each chunk's gradient taken while its logits are in memory.

Logits over a vocabulary dominate the memory of a step, so only one chunk's exist at a time. Its gradient is computed
with it, in the forward pass: recomputing logits in the backward pass would cost a third matrix product over the
vocabulary (the idea of Liger's fused linear cross entropy, arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Evaluate = Callable[[Tensor, slice], Tensor]  # (hidden of one chunk, which blocks) -> sums, the first differentiable


def sum_chunks(
    evaluate: Evaluate, hidden_MPH: Tensor, *, chunk_blocks: int, parameters: Sequence[nn.Parameter] = ()
) -> Tensor:
    """sum over chunks of ``evaluate(hidden_MPH[part], part)``; M > 0.

    Only the first sum carries a gradient: to ``hidden_MPH`` and to ``parameters``, which are what ``evaluate`` reads
    besides and trains.
    """
    trained = (hidden_MPH, *parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in trained):
        first, others = _GradientInForward.apply(evaluate, chunk_blocks, *trained)
        return torch.cat([first[None], others])
    return sum(evaluate(hidden_MPH[part], part) for part in _parts(len(hidden_MPH), chunk_blocks))


def _parts(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class _GradientInForward(torch.autograd.Function):
    """(first sum, other sums); the gradient of the first is known when forward returns, and backward scales it."""

    @staticmethod
    def forward(ctx, evaluate: Evaluate, chunk_blocks: int, hidden_MPH: Tensor, *parameters: Tensor):
        total = None
        gradient_MPH = torch.empty_like(hidden_MPH)
        gradients = [torch.zeros_like(p) for p in parameters]
        for part in _parts(len(hidden_MPH), chunk_blocks):
            chunk = hidden_MPH[part].detach().requires_grad_()
            with torch.enable_grad():
                sums = evaluate(chunk, part)
                grads = torch.autograd.grad(sums[0], (chunk, *parameters), materialize_grads=True)
            gradient_MPH[part], *more = grads
            for gradient, new in zip(gradients, more, strict=True):
                gradient += new
            total = sums.detach() if total is None else total + sums.detach()
        ctx.save_for_backward(gradient_MPH, *gradients)
        first, others = total[0].clone(), total[1:].clone()
        ctx.mark_non_differentiable(others)
        return first, others

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor, _):
        return None, None, *(upstream.to(g.dtype) * g for g in ctx.saved_tensors)
