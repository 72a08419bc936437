"""What a run says when it is stopped early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dflash.training.preemption import Stopped


@contextmanager
def stops_are_told(checkpoints: Path) -> Iterator[None]:
    """Around a fit: a run that SIGTERM or Ctrl-C has stopped says where, and how to go on, before the process ends."""
    try:
        yield
    except Stopped as stopped:
        kept = any(checkpoints.glob("*.ckpt"))
        rest = "the same command with resume=auto goes on from the newest checkpoint" if kept else "nothing was saved"
        Console().print(f"{stopped}; {rest}", soft_wrap=True)
        raise
