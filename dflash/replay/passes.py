"""Calls of a pass, from a recording where one is worth it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dflash.replay.recorder import TRACING, Pass, Recorder

CALLS_TO_SETTLE = 4  # where recorded at once: recorded, proved, made ready by torch, at full speed

logger = logging.getLogger(__name__)
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
    parameters it reads. num_held: so many of its tensors, at the end, are buffers that a session holds. refused: why
    recordings are not made, or None.
    """

    def __init__(self, run: Pass, modules: Iterable[nn.Module], *, recorder: Recorder = TRACING, num_held: int = 0):
        self.run = run
        self.modules = list(modules)
        self.recorder, self.num_held = recorder, num_held
        self.refused: str | None = None
        self._entries: dict[tuple, _Entry] = {}

    @property
    def num_recordings(self) -> int:
        """Passes that are replayed."""
        return sum(entry.proved for entry in self._entries.values())

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What ``run`` returns. Under autocast, with gradients on, and where the recorder does not serve the device it
        is always the eager pass."""
        device = tensors[0].device
        recordable = not torch.is_grad_enabled() and not torch.is_autocast_enabled(device.type)
        if self.refused or not recordable or not self.recorder.serves(device):
            return self.run(*tensors)
        entry = self._entries.setdefault(self.recorder.key(tensors, num_held=self.num_held), _Entry())
        if entry.proved:
            return entry.recording(*tensors)
        entry.calls += 1
        token = _fixed.set(True)
        try:
            if entry.recording is not None:
                return self._prove(entry, tensors)
            if (_at_once.get() or entry.calls >= self.recorder.warm_up_calls) and self._has_room():
                return self._record(entry, tensors)
            return self.run(*tensors)
        finally:
            _fixed.reset(token)

    def _has_room(self) -> bool:
        recorded = [key for key, entry in self._entries.items() if entry.recording is not None]
        if len(recorded) >= self.recorder.most_recordings and self.recorder.replaces:
            del self._entries[recorded.pop(0)]
        return len(recorded) < self.recorder.most_recordings

    def _record(self, entry: _Entry, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Make a recording, or say in ``refused`` why not; gives what the eager pass returns."""
        with _ValueReads() as reads:
            results = self.run(*tensors)
        if reads.found is not None:
            self._refuse(f"its control flow may depend on values, which {reads.found} reads")
            return results
        try:
            entry.recording = self.recorder.record(self.run, self.modules, tensors, num_held=self.num_held)
        except RuntimeError as error:
            self._refuse(f"it cannot be recorded: {str(error).splitlines()[0]}")
        return results

    def _prove(self, entry: _Entry, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Replay inputs that the recording was not made with, then run them eagerly, which writes the last word."""
        replayed = entry.recording(*tensors)
        expected = self.run(*tensors)
        entry.proved = all(torch.equal(a, b) for a, b in zip(replayed, expected, strict=True))
        if not entry.proved:
            entry.recording = None
            self._refuse("a recording gave other numbers than the eager pass")
        return expected

    def _refuse(self, why: str) -> None:
        self.refused = why
        logger.warning("a pass of decoding is not replayed but runs eagerly: %s", why)


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
