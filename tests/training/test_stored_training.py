"""Training from stored features equals training from computed ones, to the bit, also over an interruption."""

from __future__ import annotations

import torch

from dflash.data.single import SingleRows
from dflash.target.features import MemoryFeatures, OnlineFeatures
from dflash.target.stored import StoredFeatures
from tests.training.conftest import fit, make_setup, weights


def prepared(folder, **sizes):
    """A set-up whose features are on disk."""
    setup = make_setup(features=StoredFeatures(folder=folder, max_gib=1, rows_per_shard=4), **sizes)
    setup.data.setup()
    rows = SingleRows(setup.data.rows.rows, length=setup.data.length, pad_id=setup.data.pad_id)
    taps, nothing = setup.module.draft.shape.taps, lambda *_: None
    setup.module.features.prepare(
        setup.loaded.target, lambda: rows, taps, with_last=False, say=nothing, progress=nothing
    )
    setup.loaded.target.features = None  # whoever asks the target now finds nothing
    return setup


def losses(setup, folder, **options) -> tuple[list[float], dict]:
    """The loss of every step, and the weights at the end."""
    found, module = [], setup.module
    add = module._add

    def keep(terms):
        found.append(terms.numerator.item())
        add(terms)

    module._add = keep
    fit(setup, folder, evaluate=False, **options)
    return found, weights(module)


def equal(left, right) -> bool:
    return left[0] == right[0] and all(torch.equal(left[1][name], right[1][name]) for name in right[1])


def test_equal_losses_and_weights(tmp_path):
    online = losses(make_setup(batch_size=1, accumulate=2, features=OnlineFeatures()), tmp_path / "online", steps=4)
    assert equal(losses(prepared(tmp_path / "f", batch_size=1, accumulate=2), tmp_path / "s1", steps=4), online)
    memory = losses(make_setup(batch_size=4, features=MemoryFeatures(max_gib=1)), tmp_path / "memory", steps=4)
    assert equal(losses(prepared(tmp_path / "f", batch_size=4), tmp_path / "s4", steps=4), memory)
    batched = losses(make_setup(batch_size=4, features=OnlineFeatures()), tmp_path / "batched", steps=4)
    assert torch.allclose(torch.tensor(batched[0]), torch.tensor(memory[0]), rtol=1e-5)  # rows together: rounding only


def test_resuming_from_stored_features_is_exact(tmp_path):
    whole = losses(prepared(tmp_path / "f", batch_size=2), tmp_path / "whole", steps=5)
    losses(prepared(tmp_path / "f", batch_size=2), tmp_path / "first", steps=2)
    resumed = losses(
        prepared(tmp_path / "f", batch_size=2), tmp_path / "second", steps=5, resume=tmp_path / "first" / "end.ckpt"
    )
    assert resumed[0] == whole[0][2:]
    assert all(torch.equal(resumed[1][name], whole[1][name]) for name in whole[1])
