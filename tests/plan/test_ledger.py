"""The books of a rehearsal: what is alive when, and what operations cost, on tensors that hold nothing."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dflash.plan.ledger import Ledger, Rates


@pytest.fixture
def ledger():
    books = Ledger(Rates(flops=1e9, bytes=1e6, launch_seconds=0.5))
    with FakeTensorMode(), books:
        yield books


def test_bytes_live_as_long_as_their_storage(ledger):
    with ledger.phase("work") as phase:
        matrix = torch.empty(10, 10)
        assert ledger.live_bytes == 400
        view, product = matrix.T[2:], matrix @ matrix
        del matrix
        assert ledger.live_bytes == 800  # the view holds the matrix
        del view, product
    assert (ledger.live_bytes, phase.peak_bytes, phase.end_bytes) == (0, 800, 0)


def test_an_operation_takes_as_long_as_its_products_or_its_traffic_and_its_launch(ledger):
    matrix = torch.empty(1000, 1000)
    with ledger.phase("products") as products:
        matrix @ matrix
    assert (products.flops, products.seconds) == (2e9, pytest.approx(12.0 + 0.5))  # 12 MB at 1 MB/s against 2 s
    with ledger.phase("views") as views:
        matrix.T[5:].reshape(-1, 1)[:1]
    assert views.flops == 0 and views.seconds == pytest.approx(0.5 + 2 * 995 * 4e3 / 1e6)  # the one copy


def test_the_innermost_phase_has_it(ledger):
    with ledger.phase("outer") as outer:
        with ledger.phase("inner") as inner:
            torch.empty(50)
        assert (inner.peak_bytes, outer.peak_bytes) == (200, 0)


def test_what_a_mask_picks_is_everything_and_its_gradient_comes_back(ledger):
    values, mask = torch.empty(3, 4, 5, requires_grad=True), torch.empty(3, 4, dtype=torch.bool)
    picked = values[mask]
    assert picked.shape == (12, 5)
    picked.sum().backward()
    assert values.grad.shape == (3, 4, 5)


def test_attention_on_a_processor_is_counted_both_ways(ledger):
    query, key = torch.empty(2, 4, 6, 8, requires_grad=True), torch.empty(2, 4, 10, 8, requires_grad=True)
    with ledger.phase("forward") as forward:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, key)
    assert forward.flops == 2 * 2 * 2 * 4 * 6 * 10 * 8
    with ledger.phase("backward") as backward:
        out.sum().backward()
    assert backward.flops == 2.5 * forward.flops
