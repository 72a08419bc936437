"""The average of weights: by hand, exact over resuming, out of training's way, and what acceptance is measured with."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from dflash.training.averaging import WeightAverage
from dflash.training.callbacks import AcceptanceEval
from dflash.training.checkpoint import AVERAGE_KEY, load_draft, read_checkpoint
from tests.training.conftest import fit, make_setup, weights


class Spy(L.Callback):
    """The draft's weights after every optimizer step, those it began with first."""

    def __init__(self):
        self.seen: list[dict[str, torch.Tensor]] = []
        self._step = -1

    def on_train_start(self, trainer, module) -> None:
        self.on_train_batch_end(trainer, module, None, None, 0)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.seen.append(weights(module.draft))


def average_of(path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)[AVERAGE_KEY]["weights"]


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("decay", [0.15, 0.9])
def test_the_average_is_the_formula(tmp_path, decay):
    spy = Spy()
    fit(make_setup(accumulate=2, batch_size=2), tmp_path, steps=4, extra=[WeightAverage(decay=decay), spy])
    expected = spy.seen[0]
    for n, new in enumerate(spy.seen[1:]):
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * old + (1 - d) * new[name] for name, old in expected.items()}
    found = average_of(tmp_path / "end.ckpt")
    assert len(spy.seen) == 5 and found.keys() <= expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name])
    assert not equal(found, {name: spy.seen[-1][name] for name in found})


@pytest.mark.parametrize("file", ["end.ckpt", "checkpoints/step-3.ckpt"])  # written after the run, and in the middle
def test_resumed_equals_uninterrupted_the_average_too(tmp_path, file):
    def run(name: str, **options):
        setup = make_setup(accumulate=2, batch_size=2)
        fit(setup, tmp_path / name, extra=[WeightAverage(decay=0.9)], save_every=3, **options)
        return weights(setup.module)

    whole = run("whole", steps=6)
    run("first", steps=3)
    assert equal(run("second", steps=6, resume=tmp_path / "first" / file), whole)
    assert equal(average_of(tmp_path / "second" / "end.ckpt"), average_of(tmp_path / "whole" / "end.ckpt"))
    assert not equal(average_of(tmp_path / "first" / "end.ckpt"), average_of(tmp_path / "whole" / "end.ckpt"))


def test_averaging_leaves_training_bit_identical_and_is_what_is_evaluated(tmp_path):
    plain, kept = make_setup(), make_setup()
    curves = []
    for name, setup, extra in (("plain", plain, []), ("kept", kept, [WeightAverage(decay=0.9)])):
        trainer = fit(setup, tmp_path / name, steps=4, save_every=2, extra=extra)
        curves.append(next(c for c in trainer.callbacks if isinstance(c, AcceptanceEval)))
    assert equal(weights(plain.module), weights(kept.module))
    for name in ("last", "step-4"):
        draft = load_draft(tmp_path / "kept" / "checkpoints" / f"{name}.ckpt", kept.loaded)
        assert equal(dict(draft.named_parameters()), average_of(tmp_path / "kept" / "end.ckpt"))
    assert not equal(weights(draft), weights(kept.module.draft))
    packed = curves[1]._packed
    found = curves[1]._walk(draft)
    lengths = [length for row in found for length in row]
    assert packed and curves[1].curve[-1]["mean"] == pytest.approx(sum(lengths) / len(lengths))


def test_resuming_a_run_that_kept_no_average_starts_one_from_its_weights(tmp_path):
    setup = make_setup()
    fit(setup, tmp_path / "first", steps=2, evaluate=False)
    again = make_setup()
    options = {"resume": tmp_path / "first" / "end.ckpt", "evaluate": False}
    fit(again, tmp_path / "second", steps=3, extra=[WeightAverage(decay=0.0)], **options)
    assert equal(average_of(tmp_path / "second" / "end.ckpt"), dict(again.module.draft.named_parameters()))
    late = make_setup()
    fit(late, tmp_path / "third", steps=3, extra=[WeightAverage(decay=0.9)], **options)
    before, after = dict(setup.module.draft.named_parameters()), dict(late.module.draft.named_parameters())
    for name, value in average_of(tmp_path / "third" / "end.ckpt").items():
        torch.testing.assert_close(value, 0.1 * before[name] + 0.9 * after[name])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_bounds_is_refused(decay):
    with pytest.raises(ValueError, match=rf"callbacks\.average\.decay={decay}: must be at least 0 and below 1; try"):
        WeightAverage(decay=decay)
