"""Training attention of a draft layer: block queries against the context and against their own block.

The dense form would score A*K queries against S + A*K keys, most of which are masked: blocks never see each other.
``TwoPiece`` scores A*K x S and, block by block, K x K; ``Windowed``, where a layer slides, K x (window + K) a block.
``Flex`` gives the same on a GPU without any score in memory.

Letters: N query heads, G key-value heads, D head_dim; others as in dflash.types.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

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


class Near(NamedTuple):
    """What the blocks of a batch see of a window. rows_L: long, index into the flattened context of every token in the
    window of every block, L = B*A*W. bias: [B*A, 1, 1, K, W + K], 0 or -inf."""

    rows_L: Tensor
    bias: Tensor


class Windowed:
    """Sliding layers against the tokens of their window alone, gathered for each block: as many scores as are seen.
    Layers that see everything, and windows not much shorter than the row, go the dense way."""

    def __init__(self):
        self._dense = Dense()

    def prepare(self, geometry: BlockGeometry, windows: set[int | None]) -> dict[int | None, Tensor | Near]:
        """``Near`` where gathering pays, else the masks of ``Dense``."""
        A, K = geometry.anchors_BA.shape[1], geometry.block_size
        most = (geometry.documents_BS.shape[1] + A * K) // 2 - K
        near = {window for window in windows if window is not None and window <= most}
        return self._dense.prepare(geometry, windows - near) | {window: _near(geometry, window) for window in near}

    def __call__(self, query: Tensor, context: tuple[Tensor, Tensor], block: tuple[Tensor, Tensor], mask) -> Tensor:
        if isinstance(mask, Tensor):
            return self._dense(query, context, block, mask)
        B, A, K, N, D = query.shape
        G, M = context[0].shape[2], B * A
        key, value = (_with_window(c, b, mask.rows_L) for c, b in zip(context, block, strict=True))
        q = (query * D**-0.5).view(M, K, G, N // G, D).permute(0, 2, 3, 1, 4)  # M G R K D
        scores = (q.reshape(M * G, -1, D) @ key.mT).view(M, G, N // G, K, -1)
        weights = (scores.float() + mask.bias).softmax(-1).to(value.dtype)
        out = (weights.view(M * G, -1, weights.shape[-1]) @ value).view(M, G, N // G, K, D)
        return out.permute(0, 3, 1, 2, 4).reshape(B, A, K, N, D)


def _near(geometry: BlockGeometry, window: int) -> Near:
    S, K, device = geometry.documents_BS.shape[1], geometry.block_size, geometry.anchors_BA.device
    B, A = geometry.anchors_BA.shape
    index_BAW = geometry.anchors_BA[..., None] + torch.arange(-window, 0, device=device)
    at_BAW = index_BAW.clamp(min=0)  # ahead of the row there is nothing, and the mask says so
    seen_BAKW = context_mask(geometry, window).gather(3, at_BAW[:, :, None].expand(B, A, K, window))
    seen_BAKW = seen_BAKW & (index_BAW >= 0)[:, :, None]
    inside = inside_mask(geometry)
    inside = torch.ones(K, K, dtype=torch.bool, device=device) if inside is None else inside
    seen = torch.cat([seen_BAKW, inside.expand(B, A, K, K)], dim=-1)
    bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))
    rows_BAW = at_BAW + S * torch.arange(B, device=device)[:, None, None]
    return Near(rows_BAW.flatten(), bias.view(B * A, 1, 1, K, window + K))


def _with_window(context: Tensor, block: Tensor, rows_L: Tensor) -> Tensor:
    """context [B, S, G, D], block [B, A, K, G, D] -> [B*A*G, W + K, D]: keys or values that each block sees."""
    B, A, K, G, D = block.shape
    window = context.reshape(-1, G * D).index_select(0, rows_L).view(B * A, -1, G, D)
    joined = torch.cat([window, block.reshape(B * A, K, G, D)], dim=1)
    return joined.transpose(1, 2).reshape(B * A * G, -1, D)


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
