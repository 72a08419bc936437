"""Who sees whom in training: the geometry of anchored blocks over packed rows.

A block sees the context strictly before its anchor, in its own document, as far back as the layer's window; inside the
block every slot sees every slot or, causal, itself and those before it; blocks never see each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dflash.types import AnchoredBlocks, TokenBatch


@dataclass(frozen=True)
class BlockGeometry:
    """Where context tokens and slots stand. positions_BS and positions_BAK: absolute positions for RoPE.

    documents_BS: document of each context token. block_documents_BA: document of each block, -2 where invalid (no
    context token has that id). anchors_BA: row index of each anchor. causal: whether no slot sees those behind it.
    """

    positions_BS: Tensor
    positions_BAK: Tensor
    documents_BS: Tensor
    block_documents_BA: Tensor
    anchors_BA: Tensor
    block_size: int
    causal: bool = False


def block_geometry(batch: TokenBatch, blocks: AnchoredBlocks) -> BlockGeometry:
    """The geometry of ``blocks`` over ``batch``."""
    documents_BA = batch.documents_BS.gather(1, blocks.anchors_BA).masked_fill(~blocks.valid_BA, -2)
    return BlockGeometry(
        positions_BS=batch.positions_BS,
        positions_BAK=blocks.positions_BAK,
        documents_BS=batch.documents_BS,
        block_documents_BA=documents_BA,
        anchors_BA=blocks.anchors_BA,
        block_size=blocks.input_ids_BAK.shape[-1],
    )


def context_mask(geometry: BlockGeometry, window: int | None) -> Tensor:
    """bool [B, A, 1, S] (full) or [B, A, K, S] (window): which context tokens each slot sees."""
    S = geometry.documents_BS.shape[1]
    index_S = torch.arange(S, device=geometry.documents_BS.device)
    same = geometry.block_documents_BA[..., None] == geometry.documents_BS[:, None]
    seen = (same & (index_S < geometry.anchors_BA[..., None]))[:, :, None]
    if window is None:
        return seen
    slots_K = torch.arange(geometry.block_size, device=index_S.device)
    distance = geometry.anchors_BA[..., None, None] + slots_K[:, None] - index_S
    return seen & (distance < window)


def inside_mask(geometry: BlockGeometry) -> Tensor | None:
    """bool [K, K]: which slots of its block each slot sees; None: all."""
    if not geometry.causal:
        return None
    K = geometry.block_size
    return torch.ones(K, K, dtype=torch.bool, device=geometry.anchors_BA.device).tril()


def dense_mask(geometry: BlockGeometry, window: int | None) -> Tensor:
    """bool [B, A*K, S + A*K]: the same visibility written out whole, for tests and for the dense benchmark."""
    B, A = geometry.anchors_BA.shape
    K = geometry.block_size
    context = context_mask(geometry, window).expand(B, A, K, -1).reshape(B, A * K, -1)
    block = torch.arange(A, device=context.device).repeat_interleave(K)
    inside = block[:, None] == block
    seen = inside_mask(geometry)
    if seen is not None:
        inside = inside & seen.repeat(A, A)
    return torch.cat([context, inside.expand(B, -1, -1)], dim=-1)
