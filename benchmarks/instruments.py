"""What the benchmarks measure with: clocks that wait for the device, peak memory, the rate of a matrix product.

Shared by the scripts of this folder, which import it by its bare name: ``python benchmarks/x.py`` puts the folder on
the path.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from dflash.evaluation.plots import render, tidy
from dflash.evaluation.report import write_whole

ROOT = Path(__file__).resolve().parent.parent
MATRIX = {"cpu": 1024, "cuda": 8192}  # sides at which the rate of a product has levelled off


def machine(device: str) -> dict[str, Any]:
    """Where a figure was measured."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device,
        "name": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], *, device: str, repeats: int, warm_up: int = 1) -> list[float]:
    """Seconds of each of ``repeats`` calls, after ``warm_up`` that do not count."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - started)
    return times


def median_seconds(call: Callable[[], object], *, device: str, repeats: int) -> float:
    """Median seconds of a call."""
    return statistics.median(seconds_of(call, device=device, repeats=repeats))


@torch.no_grad()
def matmul_rate(device: str, dtype: torch.dtype, *, side: int | None = None, repeats: int = 10) -> float:
    """Floating-point operations per second of a large square product: the fastest of ``repeats``.

    The floor of a benchmark divides by it; a processor is never held against its data sheet.
    """
    side = side if side is not None else MATRIX[device]
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(side, side, generator=generator).to(device, dtype)
    return 2 * side**3 / min(seconds_of(lambda: a @ a, device=device, repeats=repeats, warm_up=2))


class PeakMemory:
    """Bytes that a piece of work adds at its peak to what was there before.

    On a GPU the allocator's peak. On a CPU the growth of the process's largest resident set, which never shrinks: so
    one measurement a process (``apart``).
    """

    def __init__(self, device: str):
        self.device = device
        self.before = self._allocated()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def added(self) -> int:
        """Bytes so far."""
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else self._allocated()
        return peak - self.before

    def _allocated(self) -> int:
        if self.device == "cuda":
            return torch.cuda.memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(function: Callable, *arguments):
    """``function(*arguments)`` in a process of its own. The parent never computes, so forking it is safe."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def on_device(device: str, function: Callable, *arguments):
    """In a process of its own on a CPU, for the sake of its memory; as it is on a GPU."""
    return apart(function, *arguments) if device == "cpu" else function(*arguments)


def require_device(device: str, *, otherwise: str = "--device cpu") -> None:
    """Raises ValueError where ``device`` is cuda and there is none. otherwise: the script's way without."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device cuda: no CUDA GPU is visible here; use a machine that has one, or {otherwise}")


def canvas(title: str, *, width: float = 8.0, height: float = 4.5, columns: int = 1):
    """(figure, list of its axes)."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for part in axes:
        tidy(part)
    figure.suptitle(title, fontsize=11)
    return figure, axes


def wide_console(*, width: int = 110) -> Console:
    """A console on which a table of ten columns is legible, in a file and in a narrow terminal, too."""
    return Console(width=max(width, Console().width))


def keep(result: dict[str, Any], figure: Figure, *, folder: str | Path, name: str) -> list[Path]:
    """``name``.json and ``name``.png in ``folder``, each whole or not at all; their paths."""
    folder = Path(folder)
    paths = [folder / f"{name}.json", folder / f"{name}.png"]
    write_whole(paths[0], json.dumps(result, indent=2) + "\n")
    write_whole(paths[1], render(figure))
    return paths
