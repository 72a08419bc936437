"""Recorded passes: what a module does to tensors of certain shapes, replayed without the Python in between.

A decoding step of a small model spends about half its time in the interpreter. After a number of calls with the same
shapes, a pass is recorded: on a CPU by torch.jit.trace (``recorder``), on a GPU as a CUDA graph (``graphs``). The
operations are the very ones of the eager pass, and each recording is proved against it before it counts. A pass that
hands values of tensors to Python, which might decide about its control flow, is refused.
"""

from dflash.replay.graphs import CudaGraphs
from dflash.replay.passes import CALLS_TO_SETTLE, Replay, recording_at_once, shapes_are_fixed
from dflash.replay.recorder import TRACING, Pass, Recorder, Tracing, Zeros, own_zeros

__all__ = [
    "CALLS_TO_SETTLE",
    "TRACING",
    "CudaGraphs",
    "Pass",
    "Recorder",
    "Replay",
    "Tracing",
    "Zeros",
    "own_zeros",
    "recording_at_once",
    "shapes_are_fixed",
]
