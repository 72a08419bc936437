"""Attention that never writes its scores, as FlexAttention compiled: in a rehearsal it stands where that would run.

Compiling for a GPU needs one; what is kept for the backward pass is known without: queries, keys, values, the output
and a log-sum-exp for each query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dflash.draft.mask import BlockGeometry
from dflash.plan.ledger import Ledger


class UnwrittenScores:
    """A ``BlockAttention`` of the same shapes and lifetimes as ``Flex``; products are counted for what a block sees."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger

    def prepare(self, geometry: BlockGeometry, windows: set[int | None]) -> dict[int | None, float]:
        """Keys that a query sees on average: anchors lie anywhere in the row, so half of it, or the window."""
        length = geometry.documents_BS.shape[1]
        return {w: min(length / 2, w or length) + geometry.block_size for w in windows}

    def __call__(self, query: Tensor, context: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor], mask) -> Tensor:
        """query [B, A, K, N, D] -> [B, A, K, N, D]; ``mask``: keys seen."""
        key, value = (torch.cat([c, b.flatten(1, 2)], dim=1) for c, b in zip(context, block, strict=True))
        self.ledger.add_flops(4.0 * query.numel() * mask)
        return _Flash.apply(query.flatten(1, 2), key, value, self.ledger, mask).view(query.shape)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, ledger: Ledger, keys_seen: float) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        ctx.ledger, ctx.keys_seen = ledger, keys_seen
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        query, key, value, *_ = ctx.saved_tensors
        ctx.ledger.add_flops(10.0 * query.numel() * ctx.keys_seen)  # two products forward, five backward
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None
