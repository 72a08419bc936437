"""Attention of packed rows that never writes its scores: FlexAttention, which passes over what documents and windows
hide in whole blocks. For the features of training on a GPU, where eager attention moves S x S scores a head and layer.

``target.attention=flex`` chooses it. Passes of sessions have few queries, and masks of tensors: they go through
``fused_attention``. So does everything on a CPU, where FlexAttention has no log-sum-exp for sinks when compiled.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from dflash.target.attention import FUSED, fused_attention, refuse_cap, register_attention, with_sinks
from dflash.target.masks import is_behind

FLEX = "flex"


def block_masks(documents_BS: Tensor, windows: Iterable[int | None]) -> dict[int | None, BlockMask]:
    """``masks.packed_causal`` per window, as block masks."""
    return {window: _block_mask(documents_BS, window) for window in windows}


def row_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask,
    scaling: float,
    dropout: float = 0.0,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    **_,
) -> tuple[Tensor, None]:
    """As ``fused_attention``, which takes the call where ``attention_mask`` is a tensor. On a CPU it runs uncompiled
    and does write scores: slow, for tests."""
    refuse_cap(softcap, FLEX)
    if isinstance(attention_mask, Tensor):
        return fused_attention(module, query, key, value, attention_mask, scaling, s_aux=s_aux)
    shared = query.shape[1] // key.shape[1]
    if shared & (shared - 1):  # the kernel shares keys among 2, 4, 8 ... heads
        key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
    attend = _compiled() if query.is_cuda else flex_attention
    out, aux = attend(
        query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    if s_aux is not None:
        out = with_sinks(out, aux.lse, s_aux[:, None])
    return out.transpose(1, 2).contiguous(), None


def attention_on(device: str, attention: str) -> str:
    """What computes the attention of a target that is asked for ``attention`` on ``device``."""
    return FUSED if attention == FLEX and torch.device(device).type == "cpu" else attention


def register_flex() -> None:
    """Make ``row_attention`` known under its name; ``Target.features`` gives it its masks."""
    register_attention(FLEX, row_attention)


def _block_mask(documents_BS: Tensor, window: int | None) -> BlockMask:
    B, S = documents_BS.shape

    def visible(b, _, q, k):
        return (documents_BS[b, q] == documents_BS[b, k]) & is_behind(q - k, window)

    return create_block_mask(visible, B, None, S, S, device=documents_BS.device, _compile=documents_BS.is_cuda)


@lru_cache(maxsize=1)
def _compiled():
    return torch.compile(flex_attention)
