"""Features kept in memory: the same as online, computed once a row, independent of the batch, bounded."""

from __future__ import annotations

import pytest
import torch

from dflash.target.features import MemoryFeatures, OnlineFeatures
from dflash.types import TokenBatch
from tests.toys import TAPS, packed_batch, tiny_target


def rows_of(batch: TokenBatch, *rows: int) -> TokenBatch:
    picked = list(rows)
    return TokenBatch(
        batch.ids_BS[picked], batch.documents_BS[picked], batch.positions_BS[picked], batch.supervised_BS[picked]
    )


@pytest.fixture(scope="module")
def target():
    return tiny_target("gpt_oss")


@pytest.fixture
def batch():
    return packed_batch([[(5, 20), (3, 14)], [(9, 33)], [(2, 8)]], length=44)


@pytest.fixture
def counted(target, monkeypatch):
    """Rows the target was run on."""
    seen, own = [], type(target).features

    def features(self, batch, taps, **options):
        seen.append(len(batch.ids_BS))
        return own(self, batch, taps, **options)

    monkeypatch.setattr(type(target), "features", features)
    return seen


@pytest.mark.parametrize("with_last", [False, True])
def test_memory_gives_what_online_gives(target, batch, with_last):
    online = OnlineFeatures()(target, batch, TAPS, with_last=with_last)
    memory = MemoryFeatures(max_gib=1)(target, batch, TAPS, with_last=with_last)
    torch.testing.assert_close(memory.taps_BSTH, online.taps_BSTH, atol=1e-4, rtol=1e-4)
    assert (memory.last_BSH is None) == (online.last_BSH is None) == (not with_last)
    if with_last:
        torch.testing.assert_close(memory.last_BSH, online.last_BSH, atol=1e-4, rtol=1e-4)


def test_each_row_is_computed_once_whatever_it_comes_with(target, batch, counted):
    memory = MemoryFeatures(max_gib=1)
    first = memory(target, rows_of(batch, 0, 1), TAPS, with_last=False).taps_BSTH
    second = memory(target, rows_of(batch, 2, 1, 0), TAPS, with_last=False).taps_BSTH
    assert counted == [1, 1, 1]
    assert torch.equal(second[[2, 1]], first)


def test_rows_that_differ_in_documents_only_are_two(target, counted):
    memory = MemoryFeatures(max_gib=1)
    one = packed_batch([[(5, 20)]], length=25)
    two = packed_batch([[(5, 5), (5, 10)]], length=25)
    assert torch.equal(one.ids_BS, two.ids_BS)
    features = [memory(target, b, TAPS, with_last=False).taps_BSTH for b in (one, two)]
    assert counted == [1, 1] and not torch.equal(*features)


def test_beyond_the_limit_nothing_more_is_kept(target, batch, counted):
    one_row = OnlineFeatures()(target, rows_of(batch, 0), TAPS, with_last=False).taps_BSTH.nbytes
    counted.clear()
    memory = MemoryFeatures(max_gib=1.5 * one_row / 2**30)
    results = [memory(target, batch, TAPS, with_last=False).taps_BSTH for _ in range(2)]
    assert counted == [1, 1, 1, 1, 1] and memory.num_bytes == one_row
    assert torch.equal(*results)
    with pytest.raises(ValueError, match=r"features\.max_gib=0: must be above 0"):
        MemoryFeatures(max_gib=0)
