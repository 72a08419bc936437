"""A target session: one batch of sequences being decoded, each row at its own length.

``advance`` runs the target over the next tokens of every row, ``keep`` says how many of them really happened. What is
not kept is undone: its slots are written over by the next advance, recurrent layers replay (``Recurrence``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dflash.replay import own_zeros
from dflash.shown import in_steps, shown_slots
from dflash.target.cache import SlotCache, as_slots, capacity_error
from dflash.target.layers import fresh_states
from dflash.target.recurrent import Recurrence
from dflash.types import Tree

if TYPE_CHECKING:
    from dflash.target.target import Target


class TargetSession:
    """Opened by ``Target.open``. lengths_B: long [B], tokens each row holds. room: most rows at a time. replays:
    whether its passes are replayed from recordings."""

    def __init__(
        self, target: Target, *, batch_size: int, capacity: int, taps: tuple[int, ...], room: int, replays: bool
    ):
        self.target = target
        self.capacity = capacity
        self.taps = taps
        self.room = room
        self.replays = replays
        recurrent = target.plan.recurrent
        # what sliding layers are shown: all, where recordings are bound to where a buffer begins
        self._window = target.plan.window if not self.replays or target.recorder.crops else None
        self.cache = SlotCache(
            windows=target.plan.layer_windows,
            capacity=in_steps(capacity) if self.replays else capacity,
            room=room,
            states=fresh_states(target.config, recurrent),
            zeros=target.recorder.lend(self) if self.replays else own_zeros,
        )
        self.recurrence = Recurrence(self.cache, target.blocks, recurrent)
        self.lengths_B = torch.zeros(batch_size, dtype=torch.long, device=target.device)
        self.shortest = self.longest = 0  # of lengths_B, on the host, so that no step has to ask the device

    @property
    def batch_size(self) -> int:
        """Rows there are now."""
        return len(self.lengths_B)

    @torch.no_grad()
    def advance(self, ids_BQ: Tensor, *, tree: Tree | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the target over the next Q tokens of every row, which follow each other or form a ``tree``.

        Returns (hidden_BQH after the final norm, taps_BQTH or None without taps). Rows shorter than Q are padded at
        the end by the caller, who then keeps fewer. Raises ValueError past the capacity, and for a tree where a layer
        is recurrent.
        """
        if tree is not None and self.target.plan.recurrent:
            raise self.target.tree_error()
        Q = ids_BQ.shape[1]
        if self.longest + Q > self.capacity:
            raise capacity_error(self.longest + Q, self.capacity)
        slots_BQ = as_slots(self.lengths_B, Q)
        first, end = shown_slots(self.shortest, self.longest, Q, self._window, rounded=self.replays)
        self.cache.write_at(slots_BQ, first=first, end=end)
        branches = () if tree is None else (self.lengths_B[:, None] + tree.depths_BK, tree.visible_BKK)
        buffers = self.cache.buffers() if self.replays else None
        if buffers is not None:
            return self.target.run_replayed(ids_BQ, slots_BQ, torch.tensor(first), *branches, *buffers, taps=self.taps)
        with self.recurrence.advancing(ids_BQ):
            return self.target.run_cached(ids_BQ, slots_BQ, branches=branches, cache=self.cache, taps=self.taps)

    def keep(self, counts_B: Tensor, *, lengths: Sequence[int], path_BL: Tensor | None = None) -> None:
        """Of the last advance, row b's first counts_B[b] tokens happened; of a tree, the first of ``path_BL[b]``.

        A path's keys and values move together, so that slot and position are the same again. ``lengths``: tokens each
        row holds after that; the caller knows them from its one host sync per round.
        """
        if path_BL is not None:
            self.cache.move(self.lengths_B[:, None] + path_BL, as_slots(self.lengths_B, path_BL.shape[1]))
        self.lengths_B = self.lengths_B + counts_B
        self.shortest, self.longest = min(lengths), max(lengths)
        self.recurrence.keep(counts_B)

    def select(self, rows: Tensor, *, lengths: Sequence[int]) -> None:
        """Keep only these rows of the batch (long [b]): finished rows leave and cost nothing.

        ``lengths``: tokens each of those that stay holds.
        """
        self.cache.select(rows)
        self.recurrence.select(rows)
        self.lengths_B = self.lengths_B[rows]
        self.shortest, self.longest = min(lengths), max(lengths)

    def join(self, other: TargetSession) -> None:
        """The rows of ``other``, which ends with that, come behind those here; no more than have left."""
        self.cache.join(other.cache, other.longest)
        self.recurrence.join(other.recurrence)
        self.lengths_B = torch.cat([self.lengths_B, other.lengths_B])
        self.shortest, self.longest = min(self.shortest, other.shortest), max(self.longest, other.longest)
