"""A draft session: the decoding side of the draft, over slot buffers of context keys and values.

Context features are projected once, when their tokens are accepted. A block's own keys and values stand behind them for
as long as its pass takes, so that nothing is copied to attend to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dflash.buffers import join_rows, keep_rows, write_slots
from dflash.replay import Recorder, Replay, own_zeros
from dflash.shown import in_steps, shown_slots

if TYPE_CHECKING:
    from dflash.draft.draft import Draft


class DraftSession:
    """Opened by ``Draft.open``. lengths_B: long [B], context tokens each row holds.

    extension: recordings of what ``extend`` does (``recorded_extension``), or None; with them, contexts are shown at
    rounded lengths, for other passes to be recorded as well. room: most rows at a time.
    """

    def __init__(self, draft: Draft, *, batch_size: int, capacity: int, extension: Replay | None, room: int):
        shape, weight = draft.shape, draft.fc.weight
        self.draft = draft
        self.extension = extension
        self.capacity = capacity if extension is None else in_steps(capacity)
        self.lengths_B = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        self.shortest = self.longest = 0  # of lengths_B, on the host
        size = (room, self.capacity, shape.num_kv_heads, shape.head_dim)
        recorder = None if extension is None else extension.recorder
        zeros = own_zeros if recorder is None else recorder.lend(self)
        self._room = [zeros(weight, size) for _ in range(2 * len(draft.layers))]  # keys, values, layer by layer
        self.buffers = [buffer[:batch_size] for buffer in self._room]
        self._windows = [window for window in shape.layout for _ in ("keys", "values")]
        widest = max((window for window in shape.layout if window is not None), default=None)
        # what sliding layers are shown: all, where recordings are bound to where a buffer begins
        self._window = widest if recorder is None or recorder.crops else None
        self._shown: tuple[tuple[int, int], list[Tensor]] | None = None

    @torch.no_grad()
    def extend(self, taps_BQTH: Tensor, counts_B: Tensor, *, lengths: Sequence[int]) -> None:
        """Append the features of each row's next counts_B[b] <= Q tokens to its context.

        What is written past a row's count is written over by the next call. ``lengths``: tokens each row holds
        afterwards; the caller knows them from its one host sync per round.
        """
        Q = taps_BQTH.shape[1]
        if self.longest + Q > self.capacity:
            raise self._capacity_error(Q)
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
        context = self.context(noise_BKH.shape[1])
        return propose(self.draft, noise_BKH, *context, causal=self.draft.shape.causal, padded=self.padded)

    def context(self, num_tokens: int) -> tuple[Tensor | int, ...]:
        """What ``propose`` reads and writes for blocks of so many tokens: lengths_B, the first slot that sliding layers
        are shown (an int), and each layer's keys and values as far as a block is shown them, its own slots included.
        """
        if self.longest + num_tokens > self.capacity:
            raise self._capacity_error(num_tokens)
        rounded = self.extension is not None
        bounds = first, end = shown_slots(self.shortest, self.longest, num_tokens, self._window, rounded=rounded)
        if self._shown is None or self._shown[0] != bounds:
            parts = [
                buffer[:, 0 if window is None else first : end]
                for buffer, window in zip(self.buffers, self._windows, strict=True)
            ]
            self._shown = bounds, parts
        return self.lengths_B, first, *self._shown[1]

    def select(self, rows: Tensor, *, lengths: Sequence[int]) -> None:
        """Keep only these rows of the batch, which hold so many tokens each."""
        self.lengths_B = self.lengths_B[rows]
        self.shortest, self.longest = min(lengths), max(lengths)
        self.buffers = [keep_rows(buffer, rows) for buffer in self.buffers]
        self._shown = None

    def join(self, other: DraftSession) -> None:
        """The rows of ``other``, which ends with that, come behind those here; no more than have left."""
        count, num = len(self.lengths_B), other.longest
        self.buffers = [
            join_rows(room, count, new, dim=1, num=num) for room, new in zip(self._room, other.buffers, strict=True)
        ]
        self.lengths_B = torch.cat([self.lengths_B, other.lengths_B])
        self.shortest, self.longest = min(self.shortest, other.shortest), max(self.longest, other.longest)
        self._shown = None

    @property
    def padded(self) -> bool:
        """Whether some row is shown slots behind its own block."""
        return self.shortest != self.longest or self.extension is not None

    def _capacity_error(self, more: int) -> ValueError:
        return ValueError(f"draft session: {self.longest + more} tokens do not fit its capacity of {self.capacity}")


def recorded_extension(draft: Draft, recorder: Recorder) -> Replay:
    """What ``DraftSession.extend`` does to its buffers, as recordings."""

    def extend(taps_BQTH: Tensor, slots_BQ: Tensor, *buffers: Tensor) -> tuple[Tensor, ...]:
        return _extend(draft, taps_BQTH, slots_BQ, buffers)

    return Replay(extend, [draft], recorder=recorder, num_held=2 * len(draft.layers))


def _extend(draft: Draft, taps_BQTH: Tensor, slots_BQ: Tensor, buffers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Project features to context keys and values, write them at their slots, and return them."""
    rope, contexts = draft.rotary(slots_BQ), draft.fuse(taps_BQTH)
    written = []
    for layer, context_BQH in zip(draft.layers, contexts, strict=True):
        written += layer.self_attn.context_keys_values(context_BQH, rope)
    for buffer, new in zip(buffers, written, strict=True):
        write_slots(buffer, new, slots_BQ, dim=1)
    return tuple(written)


def propose(
    draft: Draft,
    noise_BKH: Tensor,
    lengths_B: Tensor,
    first: int | Tensor,
    *buffers: Tensor,
    causal: bool,
    padded: bool,
    num_before: int = 0,
) -> Tensor:
    """``DraftSession.propose`` as a function: one pass over blocks, given what ``DraftSession.context`` gives. Their
    keys and values are written behind each row's context, where the next ``extend`` writes over them.

    first: long [] in a recorded pass, where it is one of the tensors.
    causal: a slot sees none behind it. padded: as in ``DraftSession``. num_before: slots of the blocks that passes
    before this one have written.
    """
    K = noise_BKH.shape[1]
    positions_BK = lengths_B[:, None] + torch.arange(num_before, num_before + K, device=lengths_B.device)
    views: dict[int | None, tuple[Tensor, Tensor | None]] = {}  # by window: slots of the block, mask
    for window, keys in zip(draft.shape.layout, buffers[::2], strict=True):
        if window not in views:
            start_B, slots_BK = (x if window is None else x - first for x in (lengths_B, positions_BK))
            free = window is None and not padded and (not causal or K == 1)
            mask = None if free else _mask(start_B, slots_BK, window, causal=causal, num_shown=keys.shape[1])
            views[window] = slots_BK, mask
    rope, hidden = draft.rotary(positions_BK), noise_BKH.to(draft.norm.weight.dtype)
    for layer, context in zip(draft.layers, zip(buffers[::2], buffers[1::2], strict=True), strict=True):
        hidden = layer(hidden, rope, _attend_to(context, *views[layer.window]))
    return draft.norm(hidden)


def _mask(start_B: Tensor, slots_BK: Tensor, window: int | None, *, causal: bool, num_shown: int) -> Tensor:
    """bool [B, 1, K, num_shown]: a slot sees the context, which ends before ``start_B``, at most ``window`` back, and
    all of its own block or, ``causal``, what is not behind it."""
    index = torch.arange(num_shown, device=slots_BK.device)
    last_BK1 = (slots_BK if causal else slots_BK[:, -1:].expand_as(slots_BK))[..., None]
    seen = index <= last_BK1
    if window is not None:
        seen = seen & ((index >= start_B[:, None, None]) | (slots_BK[..., None] - index < window))
    return seen[:, None]


def _attend_to(context: tuple[Tensor, Tensor], slots_BK: Tensor, mask: Tensor | None):
    """How queries attend to the context and their own block, whose keys and values are written behind it."""

    def attend(query_BKND: Tensor, block: tuple[Tensor, Tensor]) -> Tensor:
        for buffer, new in zip(context, block, strict=True):
            write_slots(buffer, new, slots_BK, dim=1)
        key, value = (buffer.transpose(1, 2) for buffer in context)
        out = F.scaled_dot_product_attention(query_BKND.transpose(1, 2), key, value, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2)

    return attend
