"""Recordings that are bound to memory: the numbers of the eager pass, whatever happens to buffers and sessions."""

from __future__ import annotations

import gc

import pytest
import torch
from tape import TapedGraphs
from torch import nn

from dflash.replay import CudaGraphs, Replay, recording_at_once


class Holder:
    """Stands for a session: holds buffers from a recorder's shelf."""

    def __init__(self, recorder, *shapes):
        zeros = recorder.lend(self)
        self.buffers = [zeros(torch.empty(0), shape) for shape in shapes]


def addresses(holder: Holder) -> list[int]:
    return [buffer.data_ptr() for buffer in holder.buffers]


def writing(layer: nn.Linear):
    """A pass that reads the first slot of a buffer and writes the others; twice is the same as once."""

    def run(x, number, buffer):
        buffer[1:] = layer(x).sum(0) * number
        return buffer * 2, x + 1

    return run


@torch.no_grad()
def test_inputs_may_lie_anywhere_and_a_buffer_has_its_own_recording():
    layer, graphs = nn.Linear(4, 4), TapedGraphs()
    replay = Replay(run := writing(layer), [layer], recorder=graphs, num_held=1)
    buffers, own = [torch.zeros(5), torch.zeros(5)], [torch.zeros(5), torch.zeros(5)]
    with recording_at_once():
        for i in range(16):
            x, number, which = torch.randn(3, 4), torch.tensor(float(i)), i // 4 % 2
            buffers[which][0] = own[which][0] = i
            results = replay(x, number, buffers[which])
            expected = run(x, number, own[which])
            assert torch.equal(buffers[which], own[which]), i
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), i
    assert graphs.captures == replay.num_recordings == 2


@torch.no_grad()
def test_results_are_not_written_over_by_the_next_replay():
    layer = nn.Linear(4, 4)
    replay = Replay(lambda x: (layer(x),), [layer], recorder=TapedGraphs())
    with recording_at_once():
        for _ in range(3):
            replay(torch.randn(2, 4))
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    results = replay(first)[0], replay(second)[0]
    assert torch.equal(results[0], layer(first)) and torch.equal(results[1], layer(second))


def test_buffers_come_back_in_order_and_clear():
    graphs = TapedGraphs()
    holder = Holder(graphs, (2, 3), (2, 3), (5,))
    where = addresses(holder)
    for buffer in holder.buffers:
        buffer.fill_(float("nan"))
    other = Holder(graphs, (2, 3), (2, 3), (5,))  # while the first is alive
    assert not set(addresses(other)) & set(where)
    del holder, buffer
    gc.collect()
    again = Holder(graphs, (2, 3), (2, 3), (5,))
    assert addresses(again) == where
    assert all(bool((buffer == 0).all()) for buffer in again.buffers)


def test_idle_buffers_of_few_shapes_are_kept(monkeypatch):
    monkeypatch.setattr("dflash.replay.graphs.MOST_IDLE", 2)
    graphs = TapedGraphs()
    for size in (3, 4, 5, 3):
        Holder(graphs, (size,))
        gc.collect()
    assert [shape for shape, *_ in graphs._idle] == [(5,), (3,)]


@torch.no_grad()
def test_the_oldest_recording_makes_room(monkeypatch):
    monkeypatch.setattr(TapedGraphs, "most_recordings", 2)
    graphs = TapedGraphs()
    replay = Replay(lambda x: (x * 2,), [], recorder=graphs)
    with recording_at_once():
        for size in (1, 2, 3, 1):
            for _ in range(3):
                x = torch.randn(size)
                assert torch.equal(replay(x)[0], x * 2)
    assert graphs.captures == 4 and replay.num_recordings == 2


@torch.no_grad()
def test_what_cannot_be_captured_runs_eagerly_and_says_why(monkeypatch, caplog):
    def refuse(self, run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(TapedGraphs, "capture", refuse)
    replay = Replay(lambda x: (x * 2,), [], recorder=TapedGraphs())
    with recording_at_once():
        for _ in range(3):
            assert torch.equal(replay(torch.ones(2))[0], torch.full((2,), 2.0))
    assert replay.refused == "it cannot be recorded: operation not permitted when stream is capturing"
    assert "not replayed but runs eagerly" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@torch.no_grad()
def test_on_a_gpu():
    layer = nn.Linear(64, 64, device="cuda")
    replay = Replay(run := writing(layer), [layer], recorder=CudaGraphs(), num_held=1)
    buffer, own = torch.zeros(65, device="cuda"), torch.zeros(65, device="cuda")
    for i in range(12):
        x, number = torch.randn(3, 64, device="cuda"), torch.tensor(float(i))
        buffer[0] = own[0] = i
        results, expected = replay(x, number, buffer), run(x, number, own)
        assert torch.equal(buffer, own), i
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True)), i
    assert replay.num_recordings == 1 and replay.refused is None
