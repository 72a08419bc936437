"""Keeps the books of a rehearsal: bytes alive, FLOPs and time of every operation, on tensors that hold no memory.

Under a ``Ledger`` the project's own code runs on fake tensors (torch's FakeTensorMode: shapes, dtypes and lifetimes, no
data). What lives when is therefore not a formula that could drift from the code, it is the code.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_BY_INDEX = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)


@dataclass(frozen=True)
class Rates:
    """What a device does in a second: flops of matrix products, bytes moved; launch_seconds: of one operation."""

    flops: float
    bytes: float
    launch_seconds: float = 0.0


@dataclass
class Phase:
    """Sums over one phase, entered any number of times.

    peak_bytes: the most alive in it. start_bytes, end_bytes: alive when it was last entered and left. seconds: each
    operation takes as long as its products or its traffic, whichever is longer (roofline), and its launch.
    """

    peak_bytes: int = 0
    start_bytes: int = 0
    end_bytes: int = 0
    flops: float = 0.0
    seconds: float = 0.0


class Ledger(TorchDispatchMode):
    """Dispatch mode, entered inside a FakeTensorMode. Outside of phases only ``live_bytes`` is kept.

    Indexing with a mask depends on data, of which there is none: every element counts as chosen, the worst case.
    """

    def __init__(self, rates: Rates):
        super().__init__()
        self.rates = rates
        self.live_bytes = 0
        self.phases: dict[str, Phase] = {}
        self._storages: dict[int, int] = {}
        self._open: list[Phase] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Count what happens inside under ``name``; the innermost phase has it."""
        phase = self.phases.setdefault(name, Phase())
        phase.start_bytes = self.live_bytes
        phase.peak_bytes = max(phase.peak_bytes, self.live_bytes)
        self._open.append(phase)
        try:
            yield phase
        finally:
            self._open.pop()
            phase.end_bytes = self.live_bytes

    def add_flops(self, flops: float) -> None:
        """Products that no operation stands for."""
        if self._open:
            self._open[-1].flops += flops
            self._open[-1].seconds += flops / self.rates.flops

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket in _BY_INDEX:
            args = (args[0], [part for index in args[1] for part in _chosen(index)], *args[2:])
        if function.overloadpacket is torch.ops.aten._grouped_mm:  # its shapes are known for bf16 only, it runs in fp32
            out = args[0].new_empty(args[0].shape[0], args[1].shape[-1])
        else:
            out = function(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        new = [self._note(tensor) for tensor in made]
        if self._open:
            self._count(function, args, kwargs, out, read, made, moves=any(new) or function._schema.is_mutable)
        return out

    def _note(self, tensor: Tensor) -> bool:
        """Whether the tensor's storage was not known yet: it is booked until it dies."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return False
        self._storages[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        if self._open:
            self._open[-1].peak_bytes = max(self._open[-1].peak_bytes, self.live_bytes)
        return True

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._storages.pop(key)

    def _count(self, function, args, kwargs, out, read: list[Tensor], made: list[Tensor], *, moves: bool) -> None:
        counter = flop_registry.get(function.overloadpacket)
        flops = counter(*args, **kwargs, out_val=out) if counter is not None else _own_flops(function, args)
        traffic = sum(t.nbytes for t in (*read, *made)) if moves else 0  # a view moves nothing
        phase = self._open[-1]
        phase.flops += flops
        if moves:
            phase.seconds += max(flops / self.rates.flops, traffic / self.rates.bytes) + self.rates.launch_seconds


def _own_flops(function, args) -> float:
    """Of products that torch's counter does not know: attention on a CPU, and the experts of a mixture."""
    name = function.overloadpacket.__name__
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return _attention_flops(*args[:3])
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return 2.5 * _attention_flops(*args[1:4])
    if "grouped_mm" in name:
        return 2.0 * args[0].shape[0] * args[1].shape[-2] * args[1].shape[-1]
    return 0.0


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    B, N, Q, D = query.shape
    return 2.0 * B * N * Q * key.shape[2] * (D + value.shape[-1])


def _chosen(index) -> list:
    """A mask as indices of all its elements, a tensor for each of its dimensions: what it picks then has a shape."""
    if not isinstance(index, Tensor) or index.dtype != torch.bool:
        return [index]
    return [index.new_empty(index.numel(), dtype=torch.long) for _ in range(index.ndim)]
