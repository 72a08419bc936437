"""Recorded passes: what a module does to tensors of certain shapes, replayed without the Python in between.

A decoding step of a small model spends about half its time in the interpreter. After a number of calls with the same
shapes, a pass is recorded by torch.jit.trace, whose operations are the very ones of the eager pass: results stay equal
bit for bit. A pass that hands values of tensors to Python, which might decide about its control flow, is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Pass = Callable[..., tuple[Tensor, ...]]  # of tensors only; may write into those it is given
WARM_UP_CALLS = 64  # a recording costs about as much as a hundred calls of it save
CALLS_TO_SETTLE = 4  # where recorded at once: recorded, proved, made ready by torch, at full speed
MOST_RECORDINGS = 64
MOST_REPLAYED_ROWS = 16  # with more, arithmetic takes the time and not the interpreter


_fixed: ContextVar[bool] = ContextVar("fixed_shapes", default=False)
_at_once: ContextVar[bool] = ContextVar("recording_at_once", default=False)


@contextmanager
def recording_at_once() -> Iterator[None]:
    """Inside, a pass is recorded when it is first called: for warm-ups, so that what is timed later is the steady speed
    and no recording."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


def shapes_are_fixed() -> bool:
    """Whether this is a pass that may be recorded: of several ways to compute something, it must take one whose shapes
    do not depend on values, and always the same."""
    return _fixed.get()


class Replay:
    """Calls ``run(*tensors)``, from a recording where one is worth it.

    run: reads nothing that changes but its arguments; their shapes decide all of its control flow. modules: whose
    parameters it reads. refused: why recordings are not made, or None.
    """

    def __init__(self, run: Pass, modules: Iterable[nn.Module]):
        self.run = run
        self.modules = list(modules)
        self.refused: str | None = None
        self._entries: dict[tuple, _Entry] = {}

    @property
    def num_recordings(self) -> int:
        """Shapes that are replayed."""
        return sum(entry.proved for entry in self._entries.values())

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What ``run`` returns. Under autocast, with gradients on, and not on a CPU it is always the eager pass."""
        eager = tensors[0].device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if eager or self.refused:
            return self.run(*tensors)
        key = tuple((t.shape, t.dtype) for t in tensors)
        entry = self._entries.setdefault(key, _Entry())
        if entry.proved:
            return entry.recording(*tensors)
        entry.calls += 1
        token = _fixed.set(True)
        try:
            if entry.recording is not None:
                return self._prove(entry, tensors)
            if (_at_once.get() or entry.calls >= WARM_UP_CALLS) and len(self._recorded()) < MOST_RECORDINGS:
                return self._record(entry, tensors)
            return self.run(*tensors)
        finally:
            _fixed.reset(token)

    def _recorded(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.recording is not None]

    def _record(self, entry: _Entry, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make a recording, or say in ``refused`` why not; gives what the eager pass returns."""
        with _ValueReads() as reads:
            results = self.run(*tensors)
        if reads.found is not None:
            self.refused = f"its control flow may depend on values, which {reads.found} reads"
            return results
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the deprecated name, and that shapes decided about control flow
            entry.recording = torch.jit.trace(_Body(self.run, self.modules), tuple(tensors), check_trace=False)
        return results

    def _prove(self, entry: _Entry, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Replay inputs that the recording was not made with, then run them eagerly, which writes the last word."""
        replayed = entry.recording(*tensors)
        expected = self.run(*tensors)
        entry.proved = all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))
        if not entry.proved:
            self.refused, entry.recording = "a recording gave other numbers than the eager pass", None
        return expected


@dataclass
class _Entry:
    """One combination of shapes."""

    calls: int = 0
    recording: Pass | None = None
    proved: bool = False


class _ValueReads(TorchDispatchMode):
    """Watches a pass for operations whose result, or its shape, hands values of tensors to Python.

    found: the name of such an operation, or None.
    """

    def __init__(self):
        super().__init__()
        self.found: str | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.data_dependent_output in func.tags or _shaped_by_values(func, args):
            self.found = str(func)
        return func(*args, **(kwargs or {}))


def _shaped_by_values(func, args: tuple) -> bool:
    if func is torch.ops.aten.index.Tensor:  # by positions it is not, by a mask it is
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.dynamic_output_shape in func.tags


class _Body(nn.Module):
    """Holds the modules for the recording, so that their parameters are referred to and not copied."""

    def __init__(self, run: Pass, modules: Iterable[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.run = run

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.run(*tensors)
