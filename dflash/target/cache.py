"""The slot cache: preallocated keys and values in which a rejected token is undone by writing over it.

Every row of the batch has its own length, so ragged batches and rollback need no cropping. Serves target sessions
through transformers' cache interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer


class SlotLayer(CacheLayerMixin):
    """Keys and values [B, heads, capacity, head_dim] of one layer; ``SlotCache`` says where the next tokens go."""

    is_compileable = False

    def __init__(self, owner: SlotCache):
        super().__init__()
        self.owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        B, heads, _, head_dim = key_states.shape
        shape = (B, heads, self.owner.capacity, head_dim)
        self.keys = key_states.new_zeros(shape)
        self.values = value_states.new_zeros(*shape[:-1], value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write [B, heads, Q, head_dim] at the owner's slots; return the slots in use by any row."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        scatter_slots(self.keys, key_states, self.owner.slots_BQ)
        scatter_slots(self.values, value_states, self.owner.slots_BQ)
        used = self.owner.num_used
        return self.keys[:, :, :used], self.values[:, :, :used]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.num_used, 0

    def get_seq_length(self) -> int:
        return self.owner.num_used

    def get_max_length(self) -> int:
        return self.owner.capacity

    def move(self, from_BL: Tensor, to_BL: Tensor) -> None:
        """Copy what stands at slots ``from_BL`` to slots ``to_BL``."""
        for buffer in (self.keys, self.values):
            B, heads, _, D = buffer.shape
            index = from_BL[:, None, :, None].expand(B, heads, from_BL.shape[1], D)
            scatter_slots(buffer, buffer.gather(2, index), to_BL)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        if self.is_initialized:
            self.keys, self.values = self.keys[rows], self.values[rows]


class SlotCache(Cache):
    """One SlotLayer per decoder layer, all writing at the slots last given to ``write_at``.

    states: by layer index, what the layers that have no slots keep; ``Recurrence`` looks after those.
    """

    def __init__(self, *, num_layers: int, capacity: int, states: Mapping[int, LinearAttentionLayer] | None = None):
        states = states or {}
        super().__init__(layers=[states[i] if i in states else SlotLayer(self) for i in range(num_layers)])
        self.capacity = capacity
        self.slots_BQ: Tensor | None = None
        self.num_used = 0

    @classmethod
    def over(cls, buffers: Sequence[Tensor], slots_BQ: Tensor) -> SlotCache:
        """A cache of the keys and values that ``buffers`` gave, for one update at ``slots_BQ`` that sees all slots."""
        cache = cls(num_layers=len(buffers) // 2, capacity=buffers[0].shape[2])
        for layer, keys, values in zip(cache.layers, buffers[::2], buffers[1::2], strict=True):
            layer.keys, layer.values, layer.is_initialized = keys, values, True
        cache.write_at(slots_BQ, num_used=cache.capacity)
        return cache

    def buffers(self, num_used: int) -> list[Tensor] | None:
        """Keys and values of every layer in turn, their first ``num_used`` slots; None before the first update."""
        if not all(layer.is_initialized for layer in self.layers):
            return None
        return [buffer[:, :, :num_used] for layer in self.layers for buffer in (layer.keys, layer.values)]

    def write_at(self, slots_BQ: Tensor, *, num_used: int) -> None:
        """The next update writes at ``slots_BQ`` and sees slots 0 .. num_used - 1."""
        self.slots_BQ, self.num_used = slots_BQ, num_used

    def move(self, from_BL: Tensor, to_BL: Tensor) -> None:
        """Copy what stands at slots ``from_BL`` to slots ``to_BL``, in every layer."""
        for layer in self.layers:
            if isinstance(layer, SlotLayer):
                layer.move(from_BL, to_BL)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        for layer in self.layers:
            if isinstance(layer, SlotLayer):
                layer.select(rows)


def scatter_slots(buffer: Tensor, states: Tensor, slots_BQ: Tensor) -> None:
    """buffer[b, :, slots[b, q]] = states[b, :, q] for [B, heads, capacity, D] and [B, heads, Q, D], in place."""
    B, heads, Q, D = states.shape
    if B == 1:  # one row: its slots are one index list, and index_copy_ is the cheaper write
        buffer.index_copy_(2, slots_BQ[0], states)
    else:
        index = slots_BQ[:, None, :, None].expand(B, heads, Q, D)
        buffer.scatter_(2, index, states)


def capacity_error(needed: int, capacity: int) -> ValueError:
    """The one sentence for a session that was opened too small."""
    return ValueError(f"session: {needed} tokens do not fit its capacity of {capacity}; open it with a larger one")


def as_slots(lengths_B: Tensor, count: int) -> Tensor:
    """long [B, count]: the next ``count`` slots of each row."""
    return lengths_B[:, None] + torch.arange(count, device=lengths_B.device)
