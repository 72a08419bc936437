"""A draft session: the decoding side of the draft, over slot buffers of context keys and values.

Context features are projected once, when their tokens are accepted; a block's own keys and values are never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dflash.replay import Replay, in_steps

if TYPE_CHECKING:
    from dflash.draft.draft import Draft


class DraftSession:
    """Opened by ``Draft.open``. lengths_B: long [B], context tokens each row holds.

    extension: recordings of what ``extend`` does (``recorded_extension``), or None; with them, contexts are shown at
    rounded lengths, for other passes to be recorded as well.
    """

    def __init__(self, draft: Draft, *, batch_size: int, capacity: int, extension: Replay | None = None):
        shape, weight = draft.shape, draft.fc.weight
        self.draft = draft
        self.extension = extension
        self.capacity = capacity if extension is None else in_steps(capacity)
        self.lengths_B = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        self.longest = 0
        self.ragged = False  # whether rows differ in length
        size = (batch_size, self.capacity, shape.num_kv_heads, shape.head_dim)
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
        buffers = self._buffers(self.capacity)
        if self.extension is None:
            _extend(self.draft, taps_BQTH, slots_BQ, buffers)
        else:
            self.extension(taps_BQTH, slots_BQ, *buffers)
        self.lengths_B = self.lengths_B + counts_B
        self.longest, self.ragged = longest, ragged

    @torch.no_grad()
    def propose(self, noise_BKH: Tensor) -> Tensor:
        """Hidden states [B, K, H] of the blocks whose anchors stand right behind each row's context."""
        lengths_B, *buffers = self.context()
        return propose(self.draft, noise_BKH, lengths_B, buffers, ragged=self._masked)

    def context(self) -> tuple[Tensor, ...]:
        """(lengths_B, and each layer's keys and values as far as a block is shown them): what ``propose`` reads."""
        return self.lengths_B, *self._buffers(self.num_seen)

    def select(self, rows: Tensor, *, longest: int, ragged: bool) -> None:
        """Keep only these rows of the batch; ``longest`` and ``ragged`` are those of the rows that stay."""
        self.lengths_B = self.lengths_B[rows]
        self.longest, self.ragged = longest, ragged
        self.keys_values = [(key[rows], value[rows]) for key, value in self.keys_values]

    def mask(self, positions_BK: Tensor, window: int | None, *, num_inside: int) -> Tensor | None:
        """bool [B, 1, K, num_seen + num_inside], or None where every slot sees every key: those of the context, and
        ``num_inside`` of its own block, of which the K are the last."""
        rule = _Rule(self.draft.shape.causal, self._masked)
        return rule.mask(self.lengths_B, positions_BK, window, num_seen=self.num_seen, num_inside=num_inside)

    @property
    def num_seen(self) -> int:
        """Context slots that a block is shown, masked where a row has not come so far."""
        return self.longest if self.extension is None else in_steps(self.longest)

    def attend_to(self, buffers: tuple[Tensor, Tensor], mask: Tensor | None):
        """How a layer's queries attend to its context buffers and the block's own keys and values."""
        return _attend_to(tuple(buffer[:, : self.num_seen] for buffer in buffers), mask)

    @property
    def _masked(self) -> bool:
        """Whether buffers are longer than some row's context."""
        return self.ragged or self.extension is not None

    def _buffers(self, length: int) -> list[Tensor]:
        return [buffer[:, :length] for pair in self.keys_values for buffer in pair]


def recorded_extension(draft: Draft) -> Replay:
    """What ``DraftSession.extend`` does to its buffers, as recordings."""
    return Replay(lambda taps, slots, *buffers: _extend(draft, taps, slots, buffers), [draft])


@dataclass(frozen=True)
class _Rule:
    """What a block's slots see. causal: of their own block only what is not behind them. ragged: buffers are longer
    than some row's context."""

    causal: bool
    ragged: bool

    def mask(
        self, lengths_B: Tensor, positions_BK: Tensor, window: int | None, *, num_seen: int, num_inside: int
    ) -> Tensor | None:
        """See ``DraftSession.mask``."""
        if window is None and not self.ragged and not self.causal:
            return None
        B, K = positions_BK.shape
        index = torch.arange(num_seen, device=positions_BK.device)
        seen = (index < lengths_B[:, None])[:, None]
        if window is not None:
            seen = seen & (positions_BK[..., None] - index < window)
        context = seen.expand(B, K, num_seen)
        inside = context.new_ones(K, num_inside)
        inside = inside.tril(num_inside - K) if self.causal else inside
        return torch.cat([context, inside.expand(B, K, num_inside)], dim=-1)[:, None]


def _extend(draft: Draft, taps_BQTH: Tensor, slots_BQ: Tensor, buffers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Project features to context keys and values, write them at their slots, and return them."""
    rope, contexts = draft.rotary(slots_BQ), draft.fuse(taps_BQTH)
    written = []
    for layer, context_BQH in zip(draft.layers, contexts, strict=True):
        written += layer.self_attn.context_keys_values(context_BQH, rope)
    for buffer, new in zip(buffers, written, strict=True):
        _write(buffer, new, slots_BQ)
    return tuple(written)


def propose(draft: Draft, noise_BKH: Tensor, lengths_B: Tensor, buffers: Sequence[Tensor], *, ragged: bool) -> Tensor:
    """``DraftSession.propose`` as a function of tensors: one pass over blocks, given each layer's keys and values of
    the context. ragged: buffers are longer than some row's context."""
    K, num_seen, rule = noise_BKH.shape[1], buffers[0].shape[1], _Rule(draft.shape.causal, ragged)
    positions_BK = lengths_B[:, None] + torch.arange(K, device=lengths_B.device)
    masks = {
        window: rule.mask(lengths_B, positions_BK, window, num_seen=num_seen, num_inside=K)
        for window in set(draft.shape.layout)
    }
    rope, hidden = draft.rotary(positions_BK), noise_BKH.to(draft.norm.weight.dtype)
    for layer, context in zip(draft.layers, zip(buffers[::2], buffers[1::2], strict=True), strict=True):
        hidden = layer(hidden, rope, _attend_to(context, masks[layer.window]))
    return draft.norm(hidden)


def _attend_to(context: tuple[Tensor, Tensor], mask: Tensor | None):
    def attend(query_BKND: Tensor, block: tuple[Tensor, Tensor]) -> Tensor:
        key, value = (
            torch.cat([buffer, new], dim=1).transpose(1, 2) for buffer, new in zip(context, block, strict=True)
        )
        out = F.scaled_dot_product_attention(query_BKND.transpose(1, 2), key, value, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2)

    return attend


def _write(buffer: Tensor, new: Tensor, slots_BQ: Tensor) -> None:
    """buffer[b, slots[b, q]] = new[b, q] for [B, capacity, G, D] and [B, Q, G, D], in place."""
    if len(new) == 1:
        buffer.index_copy_(1, slots_BQ[0], new)
    else:
        buffer.scatter_(1, slots_BQ[..., None, None].expand_as(new), new)
