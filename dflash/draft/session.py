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

from dflash.replay import Replay
from dflash.shown import in_steps, shown_slots

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
        self.shortest = self.longest = 0  # of lengths_B, on the host
        size = (batch_size, self.capacity, shape.num_kv_heads, shape.head_dim)
        self.buffers = [weight.new_zeros(size) for _ in range(2 * len(draft.layers))]  # keys, values, layer by layer
        self._windows = [window for window in shape.layout for _ in ("keys", "values")]
        self._shown: tuple[tuple[int, int], list[Tensor]] | None = None

    @torch.no_grad()
    def extend(self, taps_BQTH: Tensor, counts_B: Tensor, *, lengths: Sequence[int]) -> None:
        """Append the features of each row's next counts_B[b] <= Q tokens to its context.

        What is written past a row's count is written over by the next call. ``lengths``: tokens each row holds
        afterwards; the caller knows them from its one host sync per round.
        """
        Q = taps_BQTH.shape[1]
        if self.longest + Q > self.capacity:
            raise ValueError(f"draft session: {self.longest + Q} tokens do not fit its capacity of {self.capacity}")
        slots_BQ = self.lengths_B[:, None] + torch.arange(Q, device=self.lengths_B.device)
        if self.extension is None:
            _extend(self.draft, taps_BQTH, slots_BQ, self.buffers)
        else:
            self.extension(taps_BQTH, slots_BQ, *self.buffers)
        self.lengths_B = self.lengths_B + counts_B
        self.shortest, self.longest = min(lengths), max(lengths)

    @torch.no_grad()
    def propose(self, noise_BKH: Tensor) -> Tensor:
        """Hidden states [B, K, H] of the blocks whose anchors stand right behind each row's context."""
        return propose(self.draft, noise_BKH, *self.context(), ragged=self._masked)

    def context(self) -> tuple[Tensor, ...]:
        """What ``propose`` reads: lengths_B, the first slot that sliding layers are shown (long []), and each layer's
        keys and values as far as a block is shown them."""
        first, _ = self._bounds()
        return self.lengths_B, torch.tensor(first, device=self.lengths_B.device), *self._shown_buffers()

    def select(self, rows: Tensor, *, lengths: Sequence[int]) -> None:
        """Keep only these rows of the batch, which hold so many tokens each."""
        self.lengths_B = self.lengths_B[rows]
        self.shortest, self.longest = min(lengths), max(lengths)
        self.buffers = [buffer[rows] for buffer in self.buffers]
        self._shown = None

    def mask(self, positions_BK: Tensor, window: int | None, *, num_inside: int) -> Tensor | None:
        """bool [B, 1, K, slots shown + num_inside], or None where every slot sees every key: those of the context, and
        ``num_inside`` of its own block, of which the K are the last."""
        rule = _Rule(self.draft.shape.causal, self._masked)
        first, end = self._bounds()
        first = 0 if window is None else first
        return rule.mask(
            self.lengths_B - first, positions_BK - first, window, num_seen=end - first, num_inside=num_inside
        )

    def attend_to(self, layer: int, mask: Tensor | None):
        """How a layer's queries attend to its context and the block's own keys and values."""
        return _attend_to(tuple(self._shown_buffers()[2 * layer : 2 * layer + 2]), mask)

    @property
    def _masked(self) -> bool:
        """Whether buffers are longer than some row's context."""
        return self.shortest != self.longest or self.extension is not None

    def _bounds(self) -> tuple[int, int]:
        """(first, end): context slots that a block is shown, masked where a row has not come so far. Layers that see
        the whole context are shown those before ``first`` as well."""
        widest = max((window for window in self._windows if window is not None), default=None)
        return shown_slots(self.shortest, self.longest, 0, widest, rounded=self.extension is not None)

    def _shown_buffers(self) -> list[Tensor]:
        """Keys and values of every layer in turn, as far as it is shown them."""
        bounds = first, end = self._bounds()
        if self._shown is None or self._shown[0] != bounds:
            parts = [
                buffer[:, 0 if window is None else first : end]
                for buffer, window in zip(self.buffers, self._windows, strict=True)
            ]
            self._shown = bounds, parts
        return self._shown[1]


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


def propose(
    draft: Draft, noise_BKH: Tensor, lengths_B: Tensor, first: Tensor, *buffers: Tensor, ragged: bool
) -> Tensor:
    """``DraftSession.propose`` as a function of tensors: one pass over blocks, given what ``DraftSession.context``
    gives. ragged: buffers are longer than some row's context."""
    K, rule = noise_BKH.shape[1], _Rule(draft.shape.causal, ragged)
    positions_BK = lengths_B[:, None] + torch.arange(K, device=lengths_B.device)
    masks = {}
    for window, keys in zip(draft.shape.layout, buffers[::2], strict=True):
        if window not in masks:
            places = (x if window is None else x - first for x in (lengths_B, positions_BK))
            masks[window] = rule.mask(*places, window, num_seen=keys.shape[1], num_inside=K)
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
