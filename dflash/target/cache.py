"""The slot cache: preallocated keys and values in which a rejected token is undone by writing over it.

Every row of the batch has its own length, so ragged batches and rollback need no cropping. Layers that slide are shown
the slots their window can reach, and no others. Serves target sessions through transformers' cache interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionLayer

from dflash.buffers import join_rows, keep_rows, write_slots
from dflash.replay import Zeros, own_zeros


@dataclass(frozen=True)
class View:
    """What layers of one window are shown in a pass: ``num`` slots from slot ``first`` on.

    first: an int, or long [] where a pass is recorded. slots_BQ: where the pass's tokens stand, counted from ``first``.
    """

    first: int | Tensor
    num: int
    slots_BQ: Tensor


class SlotLayer(CacheLayerMixin):
    """Keys and values [B, heads, capacity, head_dim] of one layer, which slides over ``window`` tokens or sees all;
    ``SlotCache`` says where the next tokens go."""

    is_compileable = False

    def __init__(self, owner: SlotCache, window: int | None):
        super().__init__()
        self.owner, self.window = owner, window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        B, heads, _, head_dim = key_states.shape
        shape = (max(B, self.owner.room), heads, self.owner.capacity, head_dim)
        keys = self.owner.zeros(key_states, shape)
        self._room = keys, self.owner.zeros(value_states, (*shape[:-1], value_states.shape[-1]))
        self.keys, self.values = (buffer[:B] for buffer in self._room)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Write [B, heads, Q, head_dim] at the slots of this pass; return what the layer is shown."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.shown()
        slots_BQ = self.owner.views[self.window].slots_BQ
        write_slots(keys, key_states, slots_BQ, dim=2)
        write_slots(values, value_states, slots_BQ, dim=2)
        return keys, values

    def shown(self) -> tuple[Tensor, Tensor]:
        """Views of the keys and values that the layer is shown; writing to them writes to the layer."""
        if self.owner.cropped:
            return self.keys, self.values
        view = self.owner.views[self.window]
        return self.keys.narrow(2, view.first, view.num), self.values.narrow(2, view.first, view.num)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        return self.owner.views[self.window].num if self.owner.views else 0

    def get_max_length(self) -> int:
        return self.owner.capacity

    def move(self, from_BL: Tensor, to_BL: Tensor) -> None:
        """Copy what stands at slots ``from_BL`` to slots ``to_BL``."""
        for buffer in (self.keys, self.values):
            B, heads, _, D = buffer.shape
            index = from_BL[:, None, :, None].expand(B, heads, from_BL.shape[1], D)
            write_slots(buffer, buffer.gather(2, index), to_BL, dim=2)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        if self.is_initialized:
            self.keys, self.values = (keep_rows(buffer, rows) for buffer in (self.keys, self.values))

    def join(self, other: SlotLayer, num_slots: int) -> None:
        """The rows of ``other``, with their first ``num_slots`` slots, come behind those here."""
        if self.is_initialized:
            count, new = len(self.keys), (other.keys, other.values)
            self.keys, self.values = (
                join_rows(room, count, more, dim=2, num=num_slots) for room, more in zip(self._room, new, strict=True)
            )


class SlotCache(Cache):
    """One SlotLayer per decoder layer, all writing at the slots last given to ``write_at``.

    windows: of each layer, None for full attention. room: rows there may be, if more than come first. states: by layer
    index, what the layers that have no slots keep; ``Recurrence`` looks after those. zeros: makes the buffers. views:
    what a pass is shown, by window. cropped: layers hold no more than that.
    """

    def __init__(
        self,
        *,
        windows: Sequence[int | None],
        capacity: int,
        room: int = 1,
        states: Mapping[int, LinearAttentionLayer] | None = None,
        zeros: Zeros = own_zeros,
    ):
        states = states or {}
        layers = [states[i] if i in states else SlotLayer(self, window) for i, window in enumerate(windows)]
        super().__init__(layers=layers)
        self.capacity, self.room, self.zeros = capacity, room, zeros
        self.windows = set(windows)
        self.views: dict[int | None, View] = {}
        self.cropped = False
        self._bounds = 0, 0
        self._shown: tuple[tuple[int, int], list[Tensor]] | None = None

    @classmethod
    def over(
        cls, buffers: Sequence[Tensor], slots_BQ: Tensor, first: Tensor, windows: Sequence[int | None]
    ) -> SlotCache:
        """A cache of what ``buffers`` gave, for one update at ``slots_BQ``; sliding layers begin at slot ``first``."""
        cache = cls(windows=windows, capacity=max(keys.shape[2] for keys in buffers[::2]))
        cache.cropped = True
        for layer, keys, values in zip(cache.layers, buffers[::2], buffers[1::2], strict=True):
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            if layer.window not in cache.views:
                whole = layer.window is None
                cache.views[layer.window] = View(
                    0 if whole else first, keys.shape[2], slots_BQ if whole else slots_BQ - first
                )
        return cache

    def buffers(self) -> list[Tensor] | None:
        """Keys and values of every layer in turn, as far as they are shown; None before the first update."""
        if self._shown is None or self._shown[0] != self._bounds:
            if not all(layer.is_initialized for layer in self.layers):
                return None
            self._shown = self._bounds, [buffer for layer in self.layers for buffer in layer.shown()]
        return self._shown[1]

    def write_at(self, slots_BQ: Tensor, *, first: int, end: int) -> None:
        """The next update writes at ``slots_BQ`` and sees slots 0 .. end - 1, in sliding layers those from ``first``
        on."""
        self._bounds = first, end
        for window in self.windows:
            begins = 0 if window is None else first
            self.views[window] = View(begins, end - begins, slots_BQ - begins if begins else slots_BQ)

    def move(self, from_BL: Tensor, to_BL: Tensor) -> None:
        """Copy what stands at slots ``from_BL`` to slots ``to_BL``, in every layer."""
        for layer in self.layers:
            if isinstance(layer, SlotLayer):
                layer.move(from_BL, to_BL)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self._shown = None
        for layer in self.layers:
            if isinstance(layer, SlotLayer):
                layer.select(rows)

    def join(self, other: SlotCache, num_slots: int) -> None:
        """The rows of ``other``, with their first ``num_slots`` slots, come behind those here."""
        self._shown = None
        for layer, more in zip(self.layers, other.layers, strict=True):
            if isinstance(layer, SlotLayer):
                layer.join(more, num_slots)


def capacity_error(needed: int, capacity: int) -> ValueError:
    """The one sentence for a session that was opened too small."""
    return ValueError(f"session: {needed} tokens do not fit its capacity of {capacity}; open it with a larger one")


def as_slots(lengths_B: Tensor, count: int) -> Tensor:
    """long [B, count]: the next ``count`` slots of each row."""
    return lengths_B[:, None] + torch.arange(count, device=lengths_B.device)
