"""Plans: what they must equal, the flagship without network, and what is said of a run that does not fit."""

from __future__ import annotations

import json

import pytest

from dflash.assemble.plan import make_plan
from dflash.assemble.train import distil, train_parts, untied_module
from dflash.compose import Run
from dflash.plan.changes import candidates, cheapest, refusal
from dflash.plan.plan import GIB
from dflash.plan.rehearsal import OBJECTIVE, OPTIMIZER, TARGET
from tests.plan.conftest import RATES


def test_weights_gradients_and_optimizer_state_are_those_of_the_run(planned, settings):
    loaded = train_parts(settings())["target"]()
    for optimizer, state in (("adamw", 8), ("muon", 4)):
        rehearsal = planned(f"optimizer={optimizer}").rehearsal
        draft = rehearsal.num_draft_parameters
        assert rehearsal.num_target_parameters == loaded.target.num_parameters
        assert rehearsal.target_bytes == pytest.approx(4 * loaded.target.num_parameters, rel=0.01)
        assert rehearsal.gradient_bytes == 4 * draft
        assert rehearsal.optimizer_bytes == pytest.approx(state * draft, rel=0.15)  # Muon: norms have Adam's state
    assert planned("target.dtype=bfloat16").rehearsal.target_bytes == pytest.approx(
        2 * loaded.target.num_parameters, rel=0.01
    )


def test_parts_add_up_to_the_peak(planned):
    for overrides in ([], ["accumulate=4"], ["objective.chunk_blocks=1"], ["data.length=512", "features=online"]):
        plan = planned(*overrides)
        assert sum(plan.parts.values()) == plan.peak_bytes
        assert min(plan.parts.values()) > 0, plan.parts


def test_several_devices_copy_the_draft_or_share_it(planned):
    """DDP keeps a copy of the gradients for their exchange; of FSDP's shards each device has its own."""
    one, ddp, fsdp = planned("optimizer=adamw"), planned("trainer=cpu_ddp"), planned("trainer=cpu_fsdp")
    assert ddp.parts["gradient buckets"] == ddp.rehearsal.gradient_bytes and ddp.num_rows == 2 * one.num_rows
    assert ddp.parts["draft weights"] == one.parts["draft weights"] == 2 * fsdp.parts["draft weights"]
    assert ddp.memory_bytes == one.memory_bytes // 2 and "gradient buckets" not in fsdp.parts


def test_work_follows_the_sizes(planned):
    one, two = planned(), planned("data.batch_size=4")
    for name in (TARGET, OBJECTIVE):
        assert two.rehearsal.step[name].flops == pytest.approx(2 * one.rehearsal.step[name].flops)
    accumulated = planned("accumulate=6")
    assert accumulated.rehearsal.step[TARGET].flops == pytest.approx(6 * one.rehearsal.step[TARGET].flops)
    assert accumulated.rehearsal.step[OPTIMIZER].flops == one.rehearsal.step[OPTIMIZER].flops
    assert accumulated.num_rows == 6 * one.num_rows


@pytest.mark.parametrize("family", ["qwen3_moe", "llama", "gemma2"])
def test_other_families_can_be_planned(planned, family):
    assert planned(f"target=random_{family}").peak_bytes > 0


def test_flex_attention_of_the_target_counts_what_a_row_sees(planned):
    """The same products but for scores: a token sees half of its row, or the window, not the whole row."""
    base = ["target=tiny_gpt_oss", "data.length=512", "features=online", "target.device=cuda"]
    eager, flex = (planned(*base, f"target.attention={how}").rehearsal.step[TARGET] for how in ("eager", "flex"))
    batch, layers, heads, size, length, window = 2, 8, 3, 64, 512, 128
    saved = 4 * batch * layers // 2 * heads * length * size * (2 * length - length / 2 - window)
    assert eager.flops - flex.flops == pytest.approx(saved, rel=0.01)
    assert flex.peak_bytes < eager.peak_bytes


def test_recurrent_targets_are_refused(planned):
    with pytest.raises(ValueError, match="plan=true: target random_lfm2 has recurrent layers"):
        planned("target=random_lfm2")


def test_the_flagship_is_planned_without_network(planned, settings, monkeypatch):
    """The published sizes; one H100 holds it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = planned("experiment=gpt_oss_20b")
    assert plan.rehearsal.num_target_parameters == pytest.approx(20.9e9, rel=0.002)
    assert plan.rehearsal.num_draft_parameters == pytest.approx(8 * 92.9e6 + 41.5e6, rel=0.001)
    assert plan.parts["target weights"] == pytest.approx(2 * 20.9e9, rel=0.002)
    assert plan.memory_bytes == 79 * GIB and plan.fits
    eager = planned("experiment=gpt_oss_20b", "target.attention=eager").rehearsal.step[TARGET]
    assert eager.peak_bytes - plan.rehearsal.step[TARGET].peak_bytes > 4 * GIB  # scores of one layer
    packed = planned("experiment=gpt_oss_20b", "target.weights=mxfp4")
    assert packed.parts["target weights"] == pytest.approx(13.76e9, rel=0.01)  # the published checkpoint's files
    assert plan.peak_bytes - packed.peak_bytes == plan.parts["target weights"] - packed.parts["target weights"]


def test_what_does_not_fit_is_refused_with_the_cheapest_changes(settings):
    plain = settings("budget.memory_gib=0.001", "data.length=256", "data.batch_size=4", "objective.chunk_blocks=64")

    def replan(changed):
        return make_plan(changed, train_parts(changed), rates=RATES, module_of=untied_module)

    plan = replan(plain)
    assert not plan.fits
    changes = cheapest(plain, plan, replan)
    assert len(changes) == 3 and str(changes[0][0]) == "data.batch_size=1 accumulate=4"
    text = refusal(plain, plan, replan)
    for change, saved in changes:
        assert f"{change}: saves {saved / GIB:.2f} GiB" in text
        assert replan(change.apply(plain)).peak_bytes == plan.peak_bytes - saved


def test_every_change_sets_keys_that_there_are(settings):
    plain = settings("data.batch_size=4")
    for change in candidates(plain):
        settings("data.batch_size=4", *str(change).split())
        assert change.apply(plain) != plain


def test_plan_loads_nothing_and_leaves_a_file(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("dflash.target.load._loaded", lambda *_: pytest.fail("weights were loaded"))
    plain = settings("plan=true", "data.prompts.count=100000", "steps=5000")
    assert distil(plain, Run(tmp_path, "python train.py")) is None
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["memory"]["fits"] and sum(written["memory"]["parts"].values()) == written["memory"]["peak_bytes"]
    assert written["run"]["num_tokens"] == 5000 * 2 * 128 and written["run"]["seconds"] > 0
    plain["budget"]["memory_gib"] = 0.001
    with pytest.raises(ValueError, match=r"(?s)the device has 0\.00 .*saves .*all of them together"):
        distil(plain, Run(tmp_path, "python train.py"))


def test_pretraining_has_no_plan(settings):
    with pytest.raises(ValueError, match="plan=true: pre-training"):
        settings("experiment=tiny_target", "plan=true")
