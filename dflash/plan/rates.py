"""How fast a device is and how much it holds: measured in a fraction of a second, where it is at hand."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from dflash.plan.ledger import Rates

SIZES = {"cpu": (1024, 2**24), "cuda": (8192, 2**28)}  # of a square matrix, and of a vector that no cache holds


def is_here(device: str) -> bool:
    """Whether this machine has a ``device``, "cpu" or "cuda"."""
    return device == "cpu" or torch.cuda.is_available()


def memory_bytes(device: str) -> int:
    """All the memory of the device at hand: a GPU's own, or the machine's."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_rates(device: str, *, dtype: torch.dtype) -> Rates:
    """Of matrix products in ``dtype``, of copies and of launches, each the best of five: the device at its best."""
    side, length = SIZES[device]
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    source, place = torch.empty(length, device=device), torch.empty(length, device=device)
    scalar = torch.ones((), device=device)
    return Rates(
        flops=2.0 * side**3 / _best_seconds(lambda: matrix @ matrix, device),
        bytes=2.0 * source.nbytes / _best_seconds(lambda: place.copy_(source), device),
        launch_seconds=_best_seconds(lambda: [scalar + scalar for _ in range(200)], device) / 200,
    )


def _best_seconds(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
