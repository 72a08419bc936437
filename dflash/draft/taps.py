"""Which target layers the draft reads: rules from the target's depth to 0-based layer ids (paper section 4.1).

A tap is the output of a decoder layer, never of the last one: transformers returns that one normed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

TapRule = Callable[[int], tuple[int, ...]]


def uniform_taps(*, count: int) -> TapRule:
    """``count`` layers spread from the second to the third-to-last: round(linspace(1, N - 3, count)); N // 2 for one.

    24 layers and 5 taps give 1, 6, 11, 16, 21.
    """
    return lambda num_layers: _spread(count, 1, num_layers - 3, num_layers, "uniform")


def early_taps(*, count: int) -> TapRule:
    """``count`` layers spread over the first half."""
    return lambda num_layers: _spread(count, 0, max(0, (num_layers - 1) // 2), num_layers, "early")


def late_taps(*, count: int) -> TapRule:
    """``count`` layers spread over the second half, short of the last layer."""
    return lambda num_layers: _spread(count, num_layers // 2, num_layers - 2, num_layers, "late")


def explicit_taps(*, layers: Sequence[int]) -> TapRule:
    """Exactly these layers, ascending."""
    return lambda num_layers: check_taps(tuple(layers), num_layers)


def check_taps(taps: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """``taps`` if they are ascending layer ids below the last layer.

    Raises ValueError otherwise.
    """
    if not taps or list(taps) != sorted(set(taps)) or taps[0] < 0 or taps[-1] > num_layers - 2:
        raise ValueError(
            f"draft.taps={list(taps)}: give ascending, distinct layers between 0 and {num_layers - 2} "
            f"(the target has {num_layers} layers; the last one cannot be tapped)"
        )
    return taps


def _spread(count: int, first: int, last: int, num_layers: int, rule: str) -> tuple[int, ...]:
    if not 1 <= count <= last - first + 1:
        raise ValueError(
            f"draft.taps.count={count}: rule {rule} has room for 1 to {max(0, last - first + 1)} taps in a target of "
            f"{num_layers} layers; lower the count or name layers with taps=explicit"
        )
    if count == 1:
        return (num_layers // 2,) if rule == "uniform" else ((first + last) // 2,)
    return tuple(round(first + i * (last - first) / (count - 1)) for i in range(count))
