"""Which of a session's slots a pass is shown: up to the last one in use, and where layers slide, only those in reach.

Target and draft sessions show their layers the same, so that the cost of a sliding layer does not grow with the text.
"""

from __future__ import annotations

REPLAY_SLOTS = 128  # recordings have shapes, of which few should occur
LANES = 16  # a crop begins at multiples of these


def in_steps(count: int) -> int:
    """``count`` slots rounded up to what recorded passes are shown."""
    return -(-count // REPLAY_SLOTS) * REPLAY_SLOTS


def shown_slots(shortest: int, longest: int, num_tokens: int, window: int | None, *, rounded: bool) -> tuple[int, int]:
    """(first, end): slots first .. end - 1 hold all that layers of this window see in a pass that writes
    ``num_tokens`` slots behind rows of ``shortest`` to ``longest`` tokens.

    rounded: ``end`` goes up in steps, and how far ``first`` stands before it depends on the difference of the rows
    alone, not on their lengths.
    """
    end = longest + num_tokens
    if not rounded:
        return 0 if window is None else max(0, shortest + 1 - window), end
    end = in_steps(end)
    if window is None:
        return 0, end
    furthest = window + num_tokens + REPLAY_SLOTS - 2  # from ``end`` to what the longest row can see
    return max(0, end - furthest - in_steps(longest - shortest)) // LANES * LANES, end
