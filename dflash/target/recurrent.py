"""Rollback of recurrent layers: restore the state ahead of a pass and replay what was kept of it.

A recurrent state has no slots to write over. So the state ahead of each advance is kept, with the inputs that each
recurrent module then saw; those of the kept tokens are right, whatever came behind them. Once it is known how many
tokens happened, each row that kept fewer than all gets its old state back and its module alone runs over the kept
inputs again: no attention, no MLP. Rows that kept the same number replay together, so that no padding is ever in a
state. Nothing is replayed for rows that have left by the next advance.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.cache_utils import Cache, LinearAttentionLayer


@dataclass(frozen=True)
class Pass:
    """One advance of ids_BQ, until what was kept of it is known.

    before: the states ahead of it. calls: the module of each recurrent layer with the arguments it was called with.
    """

    ids_BQ: Tensor
    before: dict[int, LinearAttentionLayer]
    calls: dict[int, tuple[nn.Module, tuple, dict[str, Any]]]


class Recurrence:
    """The recurrent layers of one session's cache. ``blocks``: the target's decoder layers."""

    def __init__(self, cache: Cache, blocks: nn.ModuleList, indices: tuple[int, ...]):
        self.cache, self.blocks, self.indices = cache, blocks, indices
        self.last: Pass | None = None
        self.counts_B: Tensor | None = None  # kept of the last pass; None: nothing

    @contextmanager
    def advancing(self, ids_BQ: Tensor) -> Iterator[None]:
        """Around one pass of the target over ``ids_BQ``: undoes what was not kept of the one before, watches this."""
        if not self.indices:
            yield
            return
        self._settle()
        watched = Pass(ids_BQ, {i: take(self.cache.layers[i]) for i in self.indices}, {})
        handles = [
            module.register_forward_pre_hook(self._watch(i, watched), with_kwargs=True)
            for i in self.indices
            for module in self.blocks[i].children()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if set(watched.calls) != set(self.indices):
            raise ValueError(f"recurrent layers {self.indices}: no module of theirs is handed the cache")
        self.last, self.counts_B = watched, None

    def keep(self, counts_B: Tensor) -> None:
        """Of the last pass, row b's first counts_B[b] tokens happened."""
        self.counts_B = counts_B

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        for i in self.indices:
            self.cache.layers[i] = take(self.cache.layers[i], rows)
        if self.last is None:
            return
        calls = {
            i: (module, *self._cut((args, kwargs), self.last, rows, self.last.ids_BQ.shape[1]))
            for i, (module, args, kwargs) in self.last.calls.items()
        }
        before = {i: take(layer, rows) for i, layer in self.last.before.items()}
        self.last = Pass(self.last.ids_BQ[rows], before, calls)
        if self.counts_B is not None:
            self.counts_B = self.counts_B[rows]

    def join(self, other: Recurrence) -> None:
        """The rows of ``other`` come behind those here."""
        for settled in (self, other):
            settled._settle()
        for i in self.indices:
            append(self.cache.layers[i], other.cache.layers[i])

    def _watch(self, index: int, watched: Pass):
        """A hook that notes the call of the one module that is handed the cache."""

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if any(value is self.cache for value in (*args, *kwargs.values())):
                watched.calls[index] = module, args, kwargs

        return note

    def _settle(self) -> None:
        """Bring every row's states to what it kept of the last pass.

        Asks the device for the counts; the caller has just learned them from it, so nothing is waited for.
        """
        last, self.last = self.last, None
        if last is None:
            return
        B, Q = last.ids_BQ.shape
        counts = [0] * B if self.counts_B is None else self.counts_B.tolist()
        for count in sorted(set(counts) - {Q}):  # after all Q tokens the pass itself left the right states
            rows = torch.tensor([b for b, kept in enumerate(counts) if kept == count], device=last.ids_BQ.device)
            for i in self.indices:
                put(self.cache.layers[i], self._replayed(i, last, rows, count), rows)

    def _replayed(self, index: int, last: Pass, rows: Tensor, count: int) -> LinearAttentionLayer:
        """These rows' states after ``count`` tokens of the pass."""
        states = take(last.before[index], rows)
        if count:
            module, args, kwargs = last.calls[index]
            args, kwargs = self._cut((args, kwargs), last, rows, count)
            real, self.cache.layers[index] = self.cache.layers[index], states
            try:
                module(*args, **kwargs)
            finally:
                self.cache.layers[index] = real
        return states

    @staticmethod
    def _cut(arguments: Any, last: Pass, rows: Tensor, count: int) -> Any:
        """Every tensor [B, Q, ...] among ``arguments``, for ``rows`` and the first ``count`` tokens."""
        shape = last.ids_BQ.shape

        def cut(value: Any) -> Any:
            return value[rows, :count] if isinstance(value, Tensor) and value.shape[:2] == shape else value

        return tree_map(cut, arguments)


def take(layer: LinearAttentionLayer, rows: Tensor | None = None) -> LinearAttentionLayer:
    """A copy of the layer's states, of these rows or of all; modules may change states in place."""
    taken = copy.copy(layer)
    for name in ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state"):
        setattr(taken, name, dict(getattr(layer, name)))
    taken.conv_kernel_size = dict(layer.conv_kernel_size)
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name).items()
        copies = {j: s if s is None else s.clone() if rows is None else s[rows] for j, s in states}
        setattr(taken, name, copies)
    return taken


def put(layer: LinearAttentionLayer, source: LinearAttentionLayer, rows: Tensor) -> None:
    """Write the states of ``source`` to these rows of the layer; where it has none yet, a row's state is zero."""
    for states, new in ((layer.conv_states, source.conv_states), (layer.recurrent_states, source.recurrent_states)):
        for j, state in states.items():
            if state is not None:
                state[rows] = 0 if new[j] is None else new[j]


def append(layer: LinearAttentionLayer, other: LinearAttentionLayer) -> None:
    """The rows of ``other`` come behind those of the layer; both have run over tokens."""
    for states, new in ((layer.conv_states, other.conv_states), (layer.recurrent_states, other.recurrent_states)):
        for j, state in states.items():
            if state is not None:
                states[j] = torch.cat([state, new[j]])
