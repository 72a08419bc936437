"""CUDA graphs as a CPU can have them: a pass is taped operation by operation, and played again on the same memory.

What is bound to addresses, what is copied and what is shared between graphs is then as on a GPU; only the kernels and
their launching are not.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dflash.replay import CudaGraphs


class TapedGraphs(CudaGraphs):
    """Serves the CPU. captures: how many there have been."""

    def __init__(self):
        super().__init__()
        self.captures = 0

    def serves(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def capture(self, run):
        self.captures += 1
        with _Taping() as taping:
            results = run()
        return taping.play, results


class _Taping(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, out))
        return out

    def play(self) -> None:
        for func, args, kwargs, out in self.tape:
            for where, made in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(where, torch.Tensor) and made.data_ptr() != where.data_ptr():
                    where.copy_(made)
