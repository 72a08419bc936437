"""Recordings on a GPU: CUDA graphs, which launch all kernels of a pass at once.

A graph is bound to the memory it was captured with. What is small is copied to where the graph reads it; the buffers of
sessions are not, so a recording serves the sessions whose buffers stand where those of its capture stood, and sessions
get theirs from a shelf on which those of ended sessions lie ready.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from dflash.replay.recorder import Pass, Recorder, Zeros

Replayed = tuple[Callable[[], None], tuple[Tensor, ...]]  # runs the pass again; where it leaves its results
MOST_IDLE = 8  # shapes of which buffers lie ready; more would keep memory that nobody asks for again
CALLS_BEFORE_CAPTURE = 3  # libraries set themselves up in the first, which a capture must not see


class CudaGraphs(Recorder):
    """One memory pool for all graphs: what a pass leaves in it is copied out before the next one runs."""

    name = "CUDA graphs"
    warm_up_calls = 4  # capturing costs about as much as a few eager calls
    most_recordings = 256
    most_rows = 64
    crops = False
    replaces = True  # those of buffers that are gone are of no use

    def __init__(self):
        self._pool: tuple[int, int] | None = None
        self._idle: dict[tuple, list[Tensor]] = {}

    def serves(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def key(self, tensors: Sequence[Tensor], *, num_held: int) -> tuple:
        shapes = tuple((t.shape, t.dtype) for t in tensors)
        return shapes, tuple((t.data_ptr(), t.stride()) for t in tensors[len(tensors) - num_held :])

    def record(self, run: Pass, modules: Iterable[nn.Module], tensors: Sequence[Tensor], *, num_held: int) -> Pass:
        count = len(tensors) - num_held
        # on the device of the first: a number among them may come from the host
        copies = [torch.empty(t.shape, dtype=t.dtype, device=tensors[0].device) for t in tensors[:count]]
        fill(copies, tensors)
        replay, results = self.capture(lambda: run(*copies, *tensors[count:]))

        def replayed(*given: Tensor) -> tuple[Tensor, ...]:
            fill(copies, given)
            replay()
            return tuple(result.clone() for result in results)

        return replayed

    def capture(self, run: Callable[[], tuple[Tensor, ...]]) -> Replayed:
        """Capture ``run``, which reads and writes where it always does. Raises RuntimeError where CUDA refuses."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(CALLS_BEFORE_CAPTURE):
                run()
        torch.cuda.current_stream().wait_stream(side)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = run()
        return graph.replay, results

    def lend(self, session: object) -> Zeros:
        """Buffers of sessions that have ended, cleared, else new ones. All go back together, and come in the order in
        which they went, so that a session of the same shape finds each where its predecessor had it."""
        taken: list[Tensor] = []
        weakref.finalize(session, self._take_back, taken)

        def zeros(like: Tensor, shape: Sequence[int]) -> Tensor:
            idle = self._idle.get((tuple(shape), like.dtype, like.device))
            taken.append(idle.pop().zero_() if idle else like.new_zeros(shape))
            return taken[-1]

        return zeros

    def _take_back(self, buffers: Sequence[Tensor]) -> None:
        for buffer in reversed(buffers):
            key = tuple(buffer.shape), buffer.dtype, buffer.device
            idle = self._idle[key] = self._idle.pop(key, [])  # the newest shape last
            idle.append(buffer)
        while len(self._idle) > MOST_IDLE:
            del self._idle[next(iter(self._idle))]


def fill(copies: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy the first of ``given`` to where a graph reads them."""
    for copy, tensor in zip(copies, given, strict=False):
        copy.copy_(tensor, non_blocking=True)
