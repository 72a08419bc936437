"""Interrupted and resumed equals uninterrupted, bit for bit; evaluation leaves training untouched."""

from __future__ import annotations

import pytest
import torch

from dflash.target.features import MemoryFeatures, OnlineFeatures
from dflash.training.callbacks import AcceptanceEval
from dflash.training.checkpoint import find_checkpoint, load_draft, read_checkpoint
from tests.training.conftest import fit, make_setup, weights


def _equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("num_workers", "accumulate", "cut", "source"),
    [(0, 1, 3, OnlineFeatures), (0, 3, 5, OnlineFeatures), (2, 2, 1, OnlineFeatures), (0, 2, 3, MemoryFeatures)],
)
def test_resumed_equals_uninterrupted(tmp_path, num_workers, accumulate, cut, source):
    sizes = {"num_workers": num_workers, "accumulate": accumulate, "batch_size": 2}

    def make_run():
        return make_setup(**sizes, features=source(max_gib=1) if source is MemoryFeatures else source())

    whole = make_run()
    fit(whole, tmp_path / "whole", steps=8, evaluate=False)
    first = make_run()
    fit(first, tmp_path / "first", steps=cut, evaluate=False)
    assert not _equal(weights(first.module), weights(whole.module))
    second = make_run()
    fit(second, tmp_path / "second", steps=8, resume=tmp_path / "first" / "end.ckpt", evaluate=False)
    assert _equal(weights(second.module), weights(whole.module))
    ends = [read_checkpoint(tmp_path / run / "end.ckpt")["optimizer_states"][0] for run in ("whole", "second")]
    for a, b in zip(ends[0]["state"].values(), ends[1]["state"].values(), strict=True):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_evaluation_leaves_training_bit_identical(tmp_path):
    ends = []
    for evaluate in (True, False):
        setup = make_setup(accumulate=2, batch_size=2)
        fit(setup, tmp_path / str(evaluate), steps=6, evaluate=evaluate)
        ends.append(weights(setup.module))
    assert _equal(*ends)


def test_evaluation_happens_once_a_step_and_goes_on_after_resuming(tmp_path):
    setup = make_setup(accumulate=3, batch_size=2)
    trainer = fit(setup, tmp_path, steps=4, save_every=4)
    curve = next(c for c in trainer.callbacks if isinstance(c, AcceptanceEval)).curve
    assert [point["step"] for point in curve] == [0, 2, 4]
    again = make_setup(accumulate=3, batch_size=2)
    trainer = fit(again, tmp_path / "again", steps=6, resume=tmp_path / "checkpoints" / "last.ckpt")
    resumed = next(c for c in trainer.callbacks if isinstance(c, AcceptanceEval)).curve
    assert [point["step"] for point in resumed] == [0, 2, 4, 6]
    assert resumed[:3] == curve


def test_checkpoints_hold_the_draft_that_was_trained(tmp_path):
    setup = make_setup()
    fit(setup, tmp_path, steps=4, save_every=2)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"best.ckpt", "last.ckpt", "step-4.ckpt"} <= names
    assert find_checkpoint(tmp_path).name == "best.ckpt"
    draft = load_draft(tmp_path / "checkpoints" / "last.ckpt", setup.loaded)
    assert _equal(weights(draft), weights(setup.module.draft))


def test_an_interrupted_run_leaves_its_last_step(tmp_path):
    """Whatever ends a run, the steps done are on disk, and going on from them equals never having stopped."""
    whole = make_setup()
    fit(whole, tmp_path / "whole", steps=5)
    broken = make_setup()
    step = broken.module.training_step

    def failing(indexed, batch_idx):
        if indexed[0] == 3:
            raise KeyError("the machine is gone")
        step(indexed, batch_idx)

    broken.module.training_step = failing
    with pytest.raises(KeyError):
        fit(broken, tmp_path / "broken", steps=5)
    last = tmp_path / "broken" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == 3
    resumed = make_setup()
    fit(resumed, tmp_path / "resumed", steps=5, resume=last)
    assert _equal(weights(resumed.module), weights(whole.module))


def test_only_the_newest_periodic_checkpoints_are_kept(tmp_path):
    fit(make_setup(), tmp_path, steps=5, save_every=2)
    assert {path.name for path in (tmp_path / "checkpoints").glob("step-*")} == {"step-4.ckpt"}


def test_resuming_under_another_contract_lists_every_difference(tmp_path):
    setup = make_setup()
    fit(setup, tmp_path, steps=1, evaluate=False)
    other = make_setup(depth=2)
    with pytest.raises(ValueError, match="another contract") as caught:
        fit(other, tmp_path / "other", steps=2, resume=tmp_path / "end.ckpt", evaluate=False)
    assert "depth: checkpoint 1, now 2" in str(caught.value)
    assert "layout: checkpoint [None], now [None, None]" in str(caught.value)


def test_a_draft_is_not_evaluated_against_another_target(tmp_path):
    setup = make_setup()
    fit(setup, tmp_path, steps=1, evaluate=False)
    with torch.no_grad():
        setup.loaded.target.lm_head.weight[0, 0] += 1
    del setup.loaded.target.__dict__["_fingerprint"]
    with pytest.raises(ValueError, match="target: trained against"):
        load_draft(tmp_path / "end.ckpt", setup.loaded)


def test_what_is_no_checkpoint_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"neither a checkpoint file nor a run folder"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "broken.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"cannot be read: .*; it is damaged, or none of train.py's$"):
        read_checkpoint(tmp_path / "broken.ckpt")
