"""Attention layouts: for each draft layer, how far back it sees the context. None is all of it.

Window convention (transformers, vLLM, SpecForge): slot i of a block at anchor a sees context positions
>= a + i - (window - 1). Inside the block every slot sees every slot.
"""

from __future__ import annotations

from collections.abc import Callable

Layout = tuple[int | None, ...]
LayoutRule = Callable[[int], Layout]


def full_layout() -> LayoutRule:
    """Every layer sees the whole context."""
    return lambda depth: (None,) * depth


def sliding_layout(*, window: int = 2048) -> LayoutRule:
    """Every layer sees the last ``window`` positions."""
    _check_window(window)
    return lambda depth: (window,) * depth


def alternating_layout(*, window: int = 2048) -> LayoutRule:
    """Sliding and full layers in turn, the last one full."""
    _check_window(window)
    return lambda depth: tuple(None if (depth - 1 - i) % 2 == 0 else window for i in range(depth))


def _check_window(window: int) -> None:
    if window < 1:
        raise ValueError(f"layout.window={window}: give at least 1 token")
