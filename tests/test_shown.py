"""What of a session's slots a pass is shown: all that can be seen, in few shapes, and not more than that needs."""

from __future__ import annotations

import itertools

import pytest

from dflash.shown import REPLAY_SLOTS, in_steps, shown_slots

LENGTHS = (0, 1, 15, 126, 127, 128, 129, 250, 255, 256, 257, 1000)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("window", [None, 1, 16, 128, 200])
def test_nothing_in_reach_is_left_out(window, rounded):
    for shortest, more, num_tokens in itertools.product(LENGTHS, (0, 1, 3, 127, 128, 300), (0, 1, 8, 17)):
        first, end = shown_slots(shortest, shortest + more, num_tokens, window, rounded=rounded)
        assert end >= shortest + more + num_tokens
        reach = 0 if window is None else max(0, shortest - (window - 1))  # of the shortest row's next token
        assert 0 <= first <= reach
        if not rounded:
            assert (first, end) == (reach, shortest + more + num_tokens)


@pytest.mark.parametrize("window", [16, 128, 200])
@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_recorded_passes_have_one_width_far_behind_the_window(window, num_tokens):
    shown = [shown_slots(n, n, num_tokens, window, rounded=True) for n in range(1000, 2000)]
    [width] = {end - first for first, end in shown}
    assert window + num_tokens <= width < window + num_tokens + REPLAY_SLOTS + 16
    ragged = {end - first for first, end in (shown_slots(n, n + 40, 8, window, rounded=True) for n in range(999, 2000))}
    assert len(ragged) == 1


def test_a_whole_context_is_shown_in_steps():
    assert shown_slots(3, 120, 8, None, rounded=True) == (0, 128)
    assert shown_slots(3, 121, 8, None, rounded=True) == (0, 256) == (0, in_steps(129))
