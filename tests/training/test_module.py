"""The distillation module: steps, accumulation, what stays out of it, and that it learns what can be learnt."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch

from dflash.data.modules import DistillationDataModule
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.evaluation.measure import measure
from dflash.training.callbacks import AcceptanceEval, ProgressBar
from dflash.training.optim import adamw
from tests.training.conftest import fit, make_setup, weights


def test_the_target_stays_frozen_and_out_of_the_checkpoint(tmp_path):
    setup = make_setup()
    before = setup.loaded.target.fingerprint()
    fit(setup, tmp_path, steps=2, evaluate=False)
    del setup.loaded.target.__dict__["_fingerprint"]  # forget the cached one
    assert setup.loaded.target.fingerprint() == before
    assert all(name.startswith("draft.") for name in setup.module.state_dict())
    assert not setup.loaded.target.model.training
    assert setup.module.draft.training


def test_one_step_changes_every_trainable_weight(tmp_path):
    setup = make_setup()
    before = weights(setup.module)
    fit(setup, tmp_path, steps=2, evaluate=False)
    same = [name for name, value in weights(setup.module).items() if torch.equal(value, before[name])]
    assert not same


def test_a_step_does_not_depend_on_how_it_is_cut_into_micro_batches(tmp_path):
    """Numerators and denominators are summed before the division; anchors are drawn by row, so the rows of one big
    batch and of two small ones must be given the same anchors to compare: here every candidate is an anchor."""
    ends = []
    for accumulate, batch_size in ((1, 6), (3, 2)):
        setup = make_setup(accumulate=accumulate, batch_size=batch_size)
        setup.module.num_anchors = 64
        fit(setup, tmp_path, steps=1, evaluate=False)
        ends.append(weights(setup.module.draft))
    # Adam's first step is lr * sign of the gradient: where that is all rounding, the sign may differ.
    for name in ends[0]:
        close = torch.isclose(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-5)
        assert close.float().mean() > 0.99, name


def test_a_gradient_that_is_not_finite_stops_the_run_with_a_sentence(tmp_path):
    setup = make_setup()
    with torch.no_grad():
        setup.module.draft.fc.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"gradient is nan; lower optimizer\.lr"):
        fit(setup, tmp_path, steps=1, evaluate=False)


def test_bf16_mixed_keeps_fp32_masters(tmp_path):
    setup = make_setup()
    fit(setup, tmp_path, steps=2, evaluate=False, precision="bf16-mixed")
    assert {p.dtype for p in setup.module.draft.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in setup.module.draft.parameters())


def test_only_the_drafts_part_of_a_step_multiplies_less_exactly(tmp_path, monkeypatch):
    """The target's features, and what is evaluated between steps, are computed as they are decoded."""
    setup = make_setup()
    setup.module.matmul = "medium"
    found = {"features": set(), "draft": set(), "update": set()}

    def told(where: str, method):
        def run(*args, **kwargs):
            found[where].add(torch.get_float32_matmul_precision())
            return method(*args, **kwargs)

        return run

    monkeypatch.setattr(setup.module, "features", told("features", setup.module.features))
    monkeypatch.setattr(setup.module.objective, "weighting", told("draft", setup.module.objective.weighting))
    monkeypatch.setattr(setup.module, "_step", told("update", setup.module._step))
    fit(setup, tmp_path, steps=2)
    assert found == {"features": {"highest"}, "draft": {"medium"}, "update": {"high"}}
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
def test_a_one_layer_draft_reaches_full_acceptance_on_a_target_that_always_loops(tmp_path):
    """End to end: the target's greedy text runs into loops, on which a draft that is trained on it must be accepted
    whole. A label, mask or position off by one anywhere between training and decoding fails here."""
    setup = make_setup(batch_size=8, steps=150)
    setup.module.make_optimizer = partial(adamw, lr=1e-2)
    target = setup.loaded.target
    prompts = setup.prompts[:4]
    traces, _ = AutoregressiveDecoder(target).generate(prompts, max_new_tokens=40)
    setup.data = DistillationDataModule(lambda: _documents(prompts, traces), length=64, batch_size=8, pad_id=0, seed=0)
    setup.module.num_anchors = 24
    fit(setup, tmp_path, steps=150, evaluate=False)
    result = measure(
        target, setup.module.draft, prompts, label="trained", max_new_tokens=40, stop_token_ids=(), batch_size=4
    )
    assert result["lossless"] == {"equal": 4, "total": 4}
    assert result["chain_walk"] == {"equal": 4, "total": 4}
    assert result["acceptance"]["mean"] > 3.5, result["acceptance"]


def _documents(prompts, traces):
    import numpy as np

    from dflash.data.documents import Document

    for prompt, trace in zip(prompts, traces, strict=True):
        ids = np.array([*prompt, *trace.tokens], dtype=np.int32)
        yield Document(ids, np.arange(len(ids)) >= len(prompt), "loop")


def test_the_callback_rejects_intervals_that_do_not_fit():
    setup = make_setup()
    with pytest.raises(ValueError, match="decode_every=3: must be a positive multiple of eval_every=2"):
        AcceptanceEval(setup.loaded, setup.prompts, every=2, decode_every=3)


def test_the_progress_bar_counts_the_whole_run(tmp_path):
    """Of a resumed run under accumulation, too: it ends full, neither beyond its end nor short of it."""
    fit(make_setup(accumulate=2, batch_size=2), tmp_path, steps=2, evaluate=False)
    setup, bar = make_setup(accumulate=2, batch_size=2), ProgressBar()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=5, max_epochs=-1, logger=False, callbacks=[bar], enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(setup.module, setup.data, ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    (task,) = bar.progress.tasks
    assert (task.completed, task.total) == (10, 10)
