"""How passes are recorded on one kind of device: what all recorders offer, and the one for CPUs."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

Pass = Callable[..., tuple[Tensor, ...]]  # of tensors only; may write into those it is given
Zeros = Callable[[Tensor, Sequence[int]], Tensor]  # (like, shape) -> zeros of that shape, with like's dtype and device


class Recorder(ABC):
    """warm_up_calls: calls of a pass after which a recording is worth its cost. most_recordings: of one pass.
    most_rows: with more rows of a batch, arithmetic takes the time and not the launching of it. name: for reports.

    crops: whether a recording may be given another part of a buffer from call to call. replaces: whether the oldest
    recording goes when there are too many, else no more are made.
    """

    name: str
    warm_up_calls: int
    most_recordings: int
    most_rows: int
    crops: bool
    replaces: bool

    @abstractmethod
    def serves(self, device: torch.device) -> bool:
        """Whether passes of tensors on this device are recorded."""

    @abstractmethod
    def key(self, tensors: Sequence[Tensor], *, num_held: int) -> tuple:
        """What two calls must have in common to share a recording. num_held: see ``Replay``."""

    @abstractmethod
    def record(self, run: Pass, modules: Iterable[nn.Module], tensors: Sequence[Tensor], *, num_held: int) -> Pass:
        """A recording of ``run(*tensors)``; raises RuntimeError where the device cannot record it."""

    @abstractmethod
    def lend(self, session: object) -> Zeros:
        """What ``session`` makes its buffers by, which it holds for as long as it lives."""


class Tracing(Recorder):
    """torch.jit.trace, on CPUs: parameters are referred to and not copied."""

    name = "replayed"
    warm_up_calls = 64  # a recording costs about as much as a hundred calls of it save
    most_recordings = 64
    most_rows = 16
    crops = True
    replaces = False

    def serves(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def key(self, tensors: Sequence[Tensor], *, num_held: int) -> tuple:
        return tuple((t.shape, t.dtype) for t in tensors)

    def record(self, run: Pass, modules: Iterable[nn.Module], tensors: Sequence[Tensor], *, num_held: int) -> Pass:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the deprecated name, and that shapes decided about control flow
            return torch.jit.trace(_Body(run, modules), tuple(tensors), check_trace=False)

    def lend(self, session: object) -> Zeros:
        return own_zeros


TRACING = Tracing()


def own_zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
    """``Zeros`` for a session whose buffers nothing is bound to."""
    return like.new_zeros(shape)


class _Body(nn.Module):
    """Holds the modules for the recording, so that their parameters are referred to and not copied."""

    def __init__(self, run: Pass, modules: Iterable[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.run = run

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.run(*tensors)
