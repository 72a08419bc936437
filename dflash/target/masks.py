"""Additive attention masks for the target: who may look at whom, by document, position and window.

The target's layers see only these masks, both over packed rows (features) and over the slot cache (sessions), so
causality, documents, ragged lengths and sliding windows are decided in this one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dflash.target.cache import View


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A float mask to add to attention scores: 0 where ``allowed`` (bool), the dtype's minimum elsewhere."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def slot_masks(
    views: Mapping[int | None, View], branches: Sequence[Tensor], *, dtype: torch.dtype
) -> dict[int | None, Tensor]:
    """Additive [B, 1, Q, U] per window, over the U slots its layers are shown.

    branches: nothing for tokens that follow each other; of a tree, positions_BQ and visible_BQQ.
    """

    def allowed(view: View, window: int | None) -> Tensor:
        if not branches:
            return chain_over_slots(view.slots_BQ, num_used=view.num, window=window)
        positions_BQ, visible_BQQ = branches
        return tree_over_slots(view.slots_BQ, positions_BQ - view.first, visible_BQQ, num_used=view.num, window=window)

    return {window: additive(allowed(view, window), dtype) for window, view in views.items()}


def chain_over_slots(slots_BQ: Tensor, *, num_used: int, window: int | None = None) -> Tensor:
    """bool [B, 1, Q, num_used]: a token sees the slots up to its own, at most ``window`` back."""
    distance = slots_BQ[:, None, :, None] - torch.arange(num_used, device=slots_BQ.device)
    return is_behind(distance, window)


def tree_over_slots(
    slots_BK: Tensor, positions_BK: Tensor, visible_BKK: Tensor, *, num_used: int, window: int | None = None
) -> Tensor:
    """bool [B, 1, K, num_used]: the nodes of a tree stand at ``slots_BK``, behind each row's own tokens.

    A node sees its ancestors, itself and all tokens of its row, at most ``window`` positions back. Slot and position
    are the same for tokens, not for nodes.
    """
    index = torch.arange(num_used, device=slots_BK.device)
    B, K = slots_BK.shape
    tokens_BKU = (index < slots_BK[:, :1])[:, None].expand(B, K, num_used)
    seen_BKU = tokens_BKU.scatter(2, slots_BK[:, None].expand(B, K, K), visible_BKK)
    if window is not None:
        positions_BU = index.expand(B, num_used).scatter(1, slots_BK, positions_BK)
        seen_BKU = seen_BKU & (positions_BK[..., None] - positions_BU[:, None] < window)
    return seen_BKU[:, None]


def packed_causal(documents_BS: Tensor, window: int | None = None) -> Tensor:
    """bool [B, 1, S, S]: causal inside each document, at most ``window`` tokens back (own position included).

    Padding (document -1) sees itself only through its own causal chain, which keeps softmax finite.
    """
    S = documents_BS.shape[1]
    index = torch.arange(S, device=documents_BS.device)
    distance = index[:, None] - index[None, :]
    causal = is_behind(distance, window)
    same = documents_BS[:, :, None] == documents_BS[:, None, :]
    return (same & causal)[:, None]


def is_behind(distance: Tensor, window: int | None) -> Tensor:
    """bool: a key this many tokens behind its query is seen; own position included, at most ``window`` of them."""
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)
