"""Attention that never writes its scores, as FlexAttention compiled: in a rehearsal it stands where that would run,
in the draft and in the target.

Compiling for a GPU needs one; what is kept for the backward pass is known without: queries, keys, values, the output
and a log-sum-exp for each query.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dflash.draft.mask import BlockGeometry
from dflash.plan.ledger import Ledger
from dflash.target.attention import register_attention
from dflash.target.target import Target

UNWRITTEN = "unwritten"


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


def rehearse_rows(target: Target, ledger: Ledger) -> None:
    """Give ``target`` attention that stands where ``target.flex`` would run: products are counted for what it sees."""
    register_attention(UNWRITTEN, partial(_rows, ledger))
    target.model.set_attn_implementation(UNWRITTEN)


def _rows(ledger: Ledger, module, query: Tensor, *_, sliding_window: int | None = None, **__) -> tuple[Tensor, None]:
    """query [B, N, S, D] -> [B, S, N, D]. A token sees half of its row on average, or the window."""
    length = query.shape[2]
    ledger.add_flops(4.0 * query.numel() * min(length / 2, sliding_window or length))
    return torch.empty_like(query).transpose(1, 2).contiguous(), None


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
