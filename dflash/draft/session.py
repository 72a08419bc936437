"""A draft session: the decoding side of the draft, over slot buffers of context keys and values.

Context features are projected once, when their tokens are accepted; a block's own keys and values are never stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dflash.draft.draft import Draft


class DraftSession:
    """Opened by ``Draft.open``. lengths_B: long [B], context tokens each row holds."""

    def __init__(self, draft: Draft, *, batch_size: int, capacity: int):
        shape, weight = draft.shape, draft.fc.weight
        self.draft = draft
        self.capacity = capacity
        self.lengths_B = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        self.longest = 0
        self.ragged = False  # whether rows differ in length
        size = (batch_size, capacity, shape.num_kv_heads, shape.head_dim)
        self.keys_values = [(weight.new_zeros(size), weight.new_zeros(size)) for _ in draft.layers]

    @torch.no_grad()
    def extend(self, taps_BQTH: Tensor, counts_B: Tensor, *, longest: int, ragged: bool) -> None:
        """Append the features of each row's next counts_B[b] <= Q tokens to its context.

        What is written past a row's count is written over by the next call. ``longest`` is the longest row afterwards
        and ``ragged`` whether rows then differ in length: the caller knows both from its one host sync per round.
        """
        Q = taps_BQTH.shape[1]
        if self.longest + Q > self.capacity:
            raise ValueError(f"draft session: {self.longest + Q} tokens do not fit its capacity of {self.capacity}")
        slots_BQ = self.lengths_B[:, None] + torch.arange(Q, device=self.lengths_B.device)
        rope = self.draft.rotary(slots_BQ)
        contexts = self.draft.fuse(taps_BQTH)
        for layer, context_BQH, buffers in zip(self.draft.layers, contexts, self.keys_values, strict=True):
            for buffer, new in zip(buffers, layer.self_attn.context_keys_values(context_BQH, rope), strict=True):
                _write(buffer, new, slots_BQ)
        self.lengths_B = self.lengths_B + counts_B
        self.longest, self.ragged = longest, ragged

    @torch.no_grad()
    def propose(self, noise_BKH: Tensor) -> Tensor:
        """Hidden states [B, K, H] of the blocks whose anchors stand right behind each row's context."""
        K = noise_BKH.shape[1]
        positions_BK = self.lengths_B[:, None] + torch.arange(K, device=self.lengths_B.device)
        rope = self.draft.rotary(positions_BK)
        masks = {window: self.mask(positions_BK, window, num_inside=K) for window in set(self.draft.shape.layout)}
        hidden = noise_BKH.to(self.draft.fc.weight.dtype)
        for layer, buffers in zip(self.draft.layers, self.keys_values, strict=True):
            hidden = layer(hidden, rope, self.attend_to(buffers, masks[layer.window]))
        return self.draft.norm(hidden)

    def select(self, rows: Tensor, *, longest: int, ragged: bool) -> None:
        """Keep only these rows of the batch; ``longest`` and ``ragged`` are those of the rows that stay."""
        self.lengths_B = self.lengths_B[rows]
        self.longest, self.ragged = longest, ragged
        self.keys_values = [(key[rows], value[rows]) for key, value in self.keys_values]

    def mask(self, positions_BK: Tensor, window: int | None, *, num_inside: int) -> Tensor | None:
        """bool [B, 1, K, longest + num_inside], or None where every slot sees every key: those of the context, and
        ``num_inside`` of its own block, of which the K are the last."""
        causal = self.draft.shape.causal
        if window is None and not self.ragged and not causal:
            return None
        B, K = positions_BK.shape
        index = torch.arange(self.longest, device=positions_BK.device)
        seen = (index < self.lengths_B[:, None])[:, None]
        if window is not None:
            seen = seen & (positions_BK[..., None] - index < window)
        context = seen.expand(B, K, self.longest)
        inside = context.new_ones(K, num_inside)
        inside = inside.tril(num_inside - K) if causal else inside
        return torch.cat([context, inside.expand(B, K, num_inside)], dim=-1)[:, None]

    def attend_to(self, buffers: tuple[Tensor, Tensor], mask: Tensor | None):
        """How a layer's queries attend to its context buffers and the block's own keys and values."""

        def attend(query_BKND: Tensor, block: tuple[Tensor, Tensor]) -> Tensor:
            key, value = (
                torch.cat([buffer[:, : self.longest], new], dim=1).transpose(1, 2)
                for buffer, new in zip(buffers, block, strict=True)
            )
            out = F.scaled_dot_product_attention(
                query_BKND.transpose(1, 2), key, value, attn_mask=mask, enable_gqa=True
            )
            return out.transpose(1, 2)

        return attend


def _write(buffer: Tensor, new: Tensor, slots_BQ: Tensor) -> None:
    """buffer[b, slots[b, q]] = new[b, q] for [B, capacity, G, D] and [B, Q, G, D], in place."""
    if len(new) == 1:
        buffer.index_copy_(1, slots_BQ[0], new)
    else:
        buffer.scatter_(1, slots_BQ[..., None, None].expand_as(new), new)
