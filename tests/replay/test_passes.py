"""Recorded passes: bit for bit the eager ones, found out where they would not be, never made where they must not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dflash.replay import CALLS_TO_SETTLE, Replay, recording_at_once


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("dflash.replay.Tracing.warm_up_calls", 2)


class Counted:
    """A pass through a layer that counts how often Python ran it."""

    def __init__(self, run=None):
        self.calls = 0
        self.layer = nn.Linear(4, 4)
        self.run = run or (lambda layer, x, buffer: (layer(x) + buffer.sum(), x * 2))

    def __call__(self, x, buffer):
        self.calls += 1
        buffer[0] = x.sum()
        return self.run(self.layer, x, buffer)


def replay_of(counted: Counted) -> Replay:
    return Replay(counted, [counted.layer])


@torch.no_grad()
def test_a_recording_takes_over_and_writes_what_the_pass_writes():
    counted = Counted()
    replay = replay_of(counted)
    for i in range(12):
        x, buffer, own = torch.randn(3, 4), torch.zeros(5), torch.zeros(5)
        results = replay(x, buffer)
        calls = counted.calls
        expected = counted(x, own)
        counted.calls = calls
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), i
        assert torch.equal(buffer, own)
    assert replay.num_recordings == 1
    assert counted.calls == 4  # one call of warm-up, one watched, one recorded, one proved


@torch.no_grad()
def test_a_warm_up_records_at_once_and_only_there(monkeypatch):
    monkeypatch.setattr("dflash.replay.Tracing.warm_up_calls", 50)
    replay = replay_of(counted := Counted())
    with recording_at_once():
        for _ in range(CALLS_TO_SETTLE):
            replay(torch.randn(3, 4), torch.zeros(5))
    assert replay.num_recordings == 1 and counted.calls == 3  # watched, recorded, proved
    for _ in range(CALLS_TO_SETTLE):
        replay(torch.randn(2, 4), torch.zeros(5))
    assert replay.num_recordings == 1


@torch.no_grad()
def test_weights_are_referred_to_and_not_copied():
    counted = Counted()
    replay = replay_of(counted)
    x = torch.randn(3, 4)
    for _ in range(4):
        replay(x, torch.zeros(5))
    counted.layer.weight.mul_(3)
    torch.testing.assert_close(replay(x, torch.zeros(5)), counted(x, torch.zeros(5)))
    assert replay.num_recordings == 1


@torch.no_grad()
def test_every_combination_of_shapes_has_its_own_recording():
    replay = replay_of(counted := Counted())
    for rows in (3, 3, 3, 5, 5, 5, 3, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(replay(x, torch.zeros(5)), counted(x, torch.zeros(5)))
    assert replay.num_recordings == 2


@torch.no_grad()
@pytest.mark.parametrize(
    "run",
    [
        lambda layer, x, buffer: (layer(x) if x.sum() > 0 else -x,),
        lambda layer, x, buffer: (x * float(x.sum()),),
        lambda layer, x, buffer: (layer(x) * len((x > 0).nonzero()),),
        lambda layer, x, buffer: (layer(x) * len(x[x > 0]),),
    ],
)
def test_control_flow_on_values_is_refused(run):
    counted = Counted(run)
    replay = replay_of(counted)
    for _ in range(6):
        x = torch.randn(3, 4)
        assert torch.equal(replay(x, torch.zeros(5))[0], counted(x, torch.zeros(5))[0])
    assert replay.num_recordings == 0
    assert "control flow may depend on values" in replay.refused


@torch.no_grad()
def test_a_recording_that_hides_a_changing_number_is_found_out():
    changing = iter(range(100))
    counted = Counted(lambda layer, x, buffer: (x + next(changing),))
    replay = replay_of(counted)
    x = torch.zeros(3, 4)
    values = [float(replay(x, torch.zeros(5))[0][0, 0]) for _ in range(6)]
    assert replay.num_recordings == 0
    assert replay.refused == "a recording gave other numbers than the eager pass"
    assert values == sorted(set(values))


def test_gradients_and_autocast_stay_with_the_eager_pass():
    replay = replay_of(counted := Counted(lambda layer, x, buffer: (layer(x),)))
    x = torch.randn(3, 4)
    for _ in range(6):
        (out,) = replay(x, torch.zeros(5))
    out.sum().backward()
    assert counted.layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(6):
            assert replay(x, torch.zeros(5))[0].dtype == torch.bfloat16
    assert replay.num_recordings == 0
