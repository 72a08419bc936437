"""Training attention of a draft layer: block queries against the context and against their own block.

The dense form would score A*K queries against S + A*K keys, most of which are masked: blocks never see each other.
``TwoPiece`` scores A*K x S and, block by block, K x K. ``Flex`` gives the same on a GPU without any score in memory.

Letters: N query heads, G key-value heads, D head_dim; others as in dflash.types.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dflash.draft.mask import BlockGeometry, context_mask, dense_mask, inside_mask


class BlockAttention(Protocol):
    """A way to compute block attention; all agree up to rounding."""

    def prepare(self, geometry: BlockGeometry, windows: set[int | None]) -> dict[int | None, object]:
        """One mask per window, in whatever form ``__call__`` takes; built once per batch, used by every layer."""
        ...

    def __call__(self, query: Tensor, context: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor], mask) -> Tensor:
        """query [B, A, K, N, D], context (key, value) [B, S, G, D], block (key, value) [B, A, K, G, D]
        -> [B, A, K, N, D]."""
        ...


class TwoPiece:
    """Context piece and block piece under one softmax, joined by the log-sum-exp of both. Any device, any dtype."""

    def prepare(self, geometry: BlockGeometry, windows: set[int | None]) -> dict[int | None, tuple]:
        """(bool mask of the context [B, 1, 1, A, K or 1, S], of the block [K, K] or None)."""
        inside = inside_mask(geometry)
        return {window: (context_mask(geometry, window)[:, None, None], inside) for window in windows}

    def __call__(self, query: Tensor, context: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor], mask) -> Tensor:
        B, A, K, N, D = query.shape
        S, G = context[0].shape[1:3]
        R = N // G
        q = (query * D**-0.5).view(B, A, K, G, R, D).permute(0, 3, 4, 1, 2, 5)  # B G R A K D
        key_c, value_c = (x.transpose(1, 2) for x in context)  # B G S D
        key_b, value_b = (x.permute(0, 3, 1, 2, 4)[:, :, None] for x in block)  # B G 1 A K D
        scores_c = (q.reshape(B, G, R * A * K, D) @ key_c.mT).view(B, G, R, A, K, S)
        scores_b = q @ key_b.mT
        outside, inside = mask
        if inside is not None:
            scores_b = scores_b.masked_fill(~inside, float("-inf"))
        weights_c, weights_b = _joint_softmax(scores_c.masked_fill(~outside, float("-inf")), scores_b)
        out = (weights_c.to(q.dtype).reshape(B, G, R * A * K, S) @ value_c).view(B, G, R, A, K, D)
        out = out + weights_b.to(q.dtype) @ value_b
        return out.permute(0, 3, 4, 1, 2, 5).reshape(B, A, K, N, D)


def _joint_softmax(scores_c: Tensor, scores_b: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the last axis of both pieces together, in fp32. A slot always sees its block, so it is finite."""
    scores_c, scores_b = scores_c.float(), scores_b.float()
    total = torch.logaddexp(scores_c.logsumexp(-1, keepdim=True), scores_b.logsumexp(-1, keepdim=True))
    return (scores_c - total).exp(), (scores_b - total).exp()


class Dense:
    """The brute-force form, for tests and for the benchmark: every query against every key under a whole mask."""

    def prepare(self, geometry: BlockGeometry, windows: set[int | None]) -> dict[int | None, Tensor]:
        """bool masks [B, 1, A*K, S + A*K]."""
        return {window: dense_mask(geometry, window)[:, None] for window in windows}

    def __call__(self, query: Tensor, context: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor], mask) -> Tensor:
        q, key, value = _one_sequence(query, context, block)
        out = torch.nn.functional.scaled_dot_product_attention(q, key, value, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(query.shape)


class Flex:
    """FlexAttention with a sparse block mask, compiled; for GPUs. Uncompiled it runs anywhere, slowly."""

    def __init__(self, *, compile: bool = True):
        self.compile = compile

    def prepare(self, geometry: BlockGeometry, windows: set[int | None]) -> dict[int | None, BlockMask]:
        """FlexAttention block masks over A*K queries and S + A*K keys."""
        return {window: self._block_mask(geometry, window) for window in windows}

    def __call__(self, query: Tensor, context: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor], mask) -> Tensor:
        q, key, value = _one_sequence(query, context, block)
        q, key = q.to(value.dtype), key.to(value.dtype)  # under autocast norms may leave fp32, which flex refuses
        attend = _compiled_flex_attention() if self.compile else flex_attention
        out = attend(q, key, value, block_mask=mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(query.shape)

    def _block_mask(self, geometry: BlockGeometry, window: int | None) -> BlockMask:
        B, A = geometry.anchors_BA.shape
        K, S = geometry.block_size, geometry.documents_BS.shape[1]
        documents, owner, anchors = geometry.documents_BS, geometry.block_documents_BA, geometry.anchors_BA

        def visible(b, h, q, k):
            a, slot = q // K, q % K
            row = k.clamp(max=S - 1)
            seen = (k < S) & (documents[b, row] == owner[b, a]) & (k < anchors[b, a])
            if window is not None:
                seen = seen & (anchors[b, a] + slot - k < window)
            inside = (k >= S) & ((k - S) // K == a)
            return seen | (inside & ((k - S) % K <= slot) if geometry.causal else inside)

        return create_block_mask(visible, B, None, A * K, S + A * K, device=documents.device, _compile=self.compile)


@lru_cache(maxsize=1)
def _compiled_flex_attention():
    return torch.compile(flex_attention)


def _one_sequence(query: Tensor, context: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor]):
    """(q [B, N, A*K, D], key, value [B, G, S + A*K, D])."""
    joined = (torch.cat([c, b.flatten(1, 2)], dim=1).transpose(1, 2) for c, b in zip(context, block, strict=True))
    return query.flatten(1, 2).transpose(1, 2), *joined
