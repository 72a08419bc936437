"""Features on disk: equal to computed ones, confirmed before writing, going on after a kill, checked on reading."""

from __future__ import annotations

import json

import pytest
import torch

from dflash.target.features import MemoryFeatures, OnlineFeatures, split_rows
from dflash.target.stored import StoredFeatures
from tests.toys import TAPS, packed_batch, tiny_target

ROWS = [[(4, 8), (3, 9)], [(6, 20)], [(2, 14), (2, 6)], [(5, 25)], [(1, 30)]]


class _Counted:
    """A target that counts the rows it runs on, and is killed before row ``killed_at``."""

    def __init__(self, target, killed_at: int | None = None):
        self.target, self.killed_at, self.num_rows = target, killed_at, 0

    def features(self, *args, **kwargs):
        if self.num_rows == self.killed_at:
            raise KeyboardInterrupt
        self.num_rows += 1
        return self.target.features(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.target, name)


@pytest.fixture(scope="module")
def target():
    return tiny_target("gpt_oss")


@pytest.fixture(scope="module")
def batch():
    return packed_batch(ROWS, length=32)


def prepare(source, target, batch, *, with_last=False, taps=TAPS) -> list[str]:
    """What was said."""
    said: list[str] = []
    rows = split_rows(batch)
    source.prepare(target, lambda: rows, taps, with_last=with_last, say=said.append, progress=lambda *_: None)
    return said


def stored(folder, **options) -> StoredFeatures:
    return StoredFeatures(folder=folder, **{"max_gib": 1.0, "rows_per_shard": 2, **options})


@pytest.mark.parametrize("with_last", [False, True])
def test_stored_features_are_the_computed_ones(target, batch, tmp_path, with_last):
    source = stored(tmp_path)
    prepare(source, target, batch, with_last=with_last)
    expected = MemoryFeatures(max_gib=1)(target, batch, TAPS, with_last=with_last)
    found = source(target, batch, TAPS, with_last=with_last)
    assert torch.equal(found.taps_BSTH, expected.taps_BSTH)
    assert torch.equal(found.last_BSH, expected.last_BSH) if with_last else found.last_BSH is None
    row = split_rows(batch)[3]
    online = OnlineFeatures()(target, row, TAPS, with_last=False)
    assert torch.equal(source(target, row, TAPS, with_last=False).taps_BSTH, online.taps_BSTH)


def test_the_size_is_said_before_and_is_the_size_written(target, batch, tmp_path):
    source = stored(tmp_path)
    (sentence,) = prepare(source, target, batch)
    exact = 5 * 32 * len(TAPS) * target.dims.hidden_size * 4
    assert f"5 rows, {exact / 2**30:.3g} GiB in {tmp_path}" in sentence and "5 rows to be computed" in sentence
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert exact <= written < exact + 3 * 1024
    assert source.stored_bytes(exact // 5, 5) == exact


def test_too_much_is_refused_before_anything_is_computed(target, batch, tmp_path):
    counted = _Counted(target)
    with pytest.raises(ValueError, match=r"features\.max_gib=1e-06: the features of 5 rows take .* GiB on disk; raise"):
        prepare(stored(tmp_path, max_gib=1e-6), counted, batch)
    assert counted.num_rows == 0 and not list(tmp_path.rglob("*"))


def test_a_killed_run_goes_on_behind_its_last_shard(target, batch, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(stored(tmp_path), _Counted(target, killed_at=3), batch)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    counted, source = _Counted(target), stored(tmp_path)
    assert "3 rows to be computed" in prepare(source, counted, batch)[0]
    assert counted.num_rows == 3
    again = _Counted(target)
    prepare(stored(tmp_path), again, batch)
    assert again.num_rows == 0
    expected = MemoryFeatures(max_gib=1)(target, batch, TAPS, with_last=False)
    assert torch.equal(source(target, batch, TAPS, with_last=False).taps_BSTH, expected.taps_BSTH)


def test_a_damaged_shard_is_written_anew(target, batch, tmp_path, caplog):
    prepare(stored(tmp_path), target, batch)
    path = sorted(tmp_path.rglob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    counted, source = _Counted(target), stored(tmp_path)
    prepare(source, counted, batch)
    assert counted.num_rows == 2 and "is damaged and is written anew" in caplog.text
    expected = MemoryFeatures(max_gib=1)(target, batch, TAPS, with_last=False)
    assert torch.equal(source(target, batch, TAPS, with_last=False).taps_BSTH, expected.taps_BSTH)


def test_the_manifest_knows_every_row(target, batch, tmp_path):
    prepare(stored(tmp_path), target, batch)
    (manifest,) = tmp_path.rglob("manifest.json")
    content = json.loads(manifest.read_text())
    assert content["identity"]["target"] == target.fingerprint() and content["identity"]["taps"] == list(TAPS)
    assert [len(shard["rows"]) for shard in content["shards"].values()] == [2, 2, 1]


def test_other_taps_and_other_rows_stand_elsewhere(target, batch, tmp_path):
    prepare(stored(tmp_path), target, batch)
    prepare(stored(tmp_path), target, batch, taps=(0, 1))
    prepare(stored(tmp_path), target, packed_batch(ROWS, length=32, seed=1))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_row_that_was_not_stored_is_an_error(target, batch, tmp_path):
    source = stored(tmp_path)
    prepare(source, target, batch)
    with pytest.raises(ValueError, match=r"features=stored: a row .* data\.streaming=false"):
        source(target, packed_batch(ROWS, length=32, seed=2), TAPS, with_last=False)
