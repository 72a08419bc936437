"""Wrong keys, values and combinations: one error with every finding, before anything is loaded."""

from __future__ import annotations

import resource

import pytest

from dflash.assemble.parts import build_parts, ready_device
from dflash.compose import build
from dflash.compose.launch import composition_findings


def findings(settings, *overrides: str) -> list[str]:
    with pytest.raises(ValueError, match="wrong with the configuration") as caught:
        settings(*overrides)
    return [line.removeprefix("  * ") for line in str(caught.value).splitlines()[1:]]


def test_all_wrong_values_are_listed_with_bound_and_fix(settings):
    found = findings(
        settings, "steps=0", "draft.mlp_ratio=0", "optimizer.lr=-1", "objective.labels=dta", "draft.taps.count=9"
    )
    assert [line.partition("=")[0] for line in found] == [
        "steps",
        "optimizer.lr",
        "draft.mlp_ratio",
        "objective.labels",
        "draft.taps.count",
    ]
    assert found[0] == "steps=0: must be a number of at least 1; try steps=1000"
    assert "choose one of data, target" in found[3] and "lower the count" in found[4]


def test_wrong_types_do_not_hide_other_findings(settings):
    found = findings(settings, "draft.depth=two", "data.batch_size=[1]", "decoding.batch_sizes=8", "num_anchors=0")
    assert any(line == "draft.depth=two: must be a whole number, as in draft.depth=2" for line in found)
    assert any(line.startswith("data.batch_size=[1]") for line in found)
    assert any(line.startswith("decoding.batch_sizes=8: must be a list") for line in found)
    assert any(line.startswith("num_anchors=0") for line in found)


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["taps=explicit", "draft.taps.layers=[1,7]"], "draft.taps", "cannot be tapped"),
        (["draft.num_heads=3", "draft.num_kv_heads=2"], "draft.num_kv_heads=2", "does not divide"),
        (["draft.head_dim=7"], "draft.head_dim=7", "even"),
        (["target.mask_token_id=4096"], "target.mask_token_id=4096", "between 0 and 4095"),
        (["target.mask_token_id=4089"], "target.mask_token_id=4089", "stop token"),
        (["num_anchors=500"], "num_anchors=500", "data.length=384"),
        (["data.length=64"], "data.prompts.prompt_tokens", "below data.length=64"),
        (["data.length=20000"], "data.length=20000", "at most 16384"),
        (["decoding.max_new_tokens=20000"], "decoding.max_new_tokens=20000", "positions"),
        (["callbacks.acceptance.decode_every=150"], "callbacks.acceptance.decode_every=150", "multiple of eval_every"),
        (["trainer=gpu", "device=cpu", "attention=dense"], "device=cpu", "must share one"),
        (["layout=sliding", "draft.layout.window=0"], "draft.layout.window=0", "at least 1"),
        (["data=file", "data.path=nowhere.jsonl"], "data.path=nowhere.jsonl", "does not exist"),
        (["prompts=file", "prompts.path=nowhere.jsonl"], "prompts.path=nowhere.jsonl", "does not exist"),
        (["resume=nowhere"], "resume=nowhere", "does not exist"),
        (["block_size=1"], "block_size=1", "at least 2"),
        (["data.prompts.chat_fraction=1.5"], "data.prompts.chat_fraction=1.5", "between 0 and 1"),
        (["decoding.temperatures=[]"], "decoding.temperatures=[]", "at least one"),
        (["decoding.top_k=2.5"], "decoding.top_k=2.5", "a whole number of at least 1"),
        (["decoding.top_p=0"], "decoding.top_p=0", "above 0 and at most 1"),
        (["decoding.min_p=1.5"], "decoding.min_p=1.5", "between 0 and 1"),
        (["verify=ddtree", "decoding.verifier.num_nodes=0"], "decoding.verifier.num_nodes=0", "a whole number"),
        (["verify=adaptive", "decoding.verifier.threshold=2"], "decoding.verifier.threshold=2", "between 0 and 1"),
        (["logger=wandb", "logger.wandb.mode=of"], "logger.wandb.mode=of", "offline"),
        (["target.path=/nowhere"], "target.path=/nowhere", "config.json"),
    ],
)
def test_each_combination_has_its_sentence(overrides, key, words, settings):
    found = findings(settings, *overrides)
    assert len(found) == 1, found
    assert found[0].startswith(key) and words in found[0]


def test_missing_values_are_named(hydra_ready):
    found = composition_findings("train", ["target=local", "taps=explicit", "data=file"])
    assert [line.partition(":")[0] for line in found] == ["data.path", "draft.taps.layers", "target.path"]


def test_keys_that_do_not_compose_are_listed_with_suggestions(hydra_ready):
    overrides = ["blocksize=4", "draft.dpth=3", "steps=abc", "data=nope", "eval_every=0"]
    found = composition_findings("train", overrides)
    assert found[0].startswith("data=nope: choose one of codealpaca, corpus, file")
    assert found[1] == "blocksize=4: there is no key blocksize; did you mean block_size?"
    assert found[2] == "draft.dpth=3: there is no key draft.dpth; did you mean draft.depth?"
    assert found[3].startswith("steps=abc:") and "as in steps=2000" in found[3]
    assert any(line.startswith("eval_every=0") for line in found)


def test_a_checkpoint_that_is_not_there(evaluation):
    found = findings(evaluation, "checkpoint=nowhere", "block_size=0")
    assert any(line.startswith("checkpoint=nowhere: does not exist") for line in found)
    assert any(line.startswith("block_size=0") for line in found)
    found = findings(evaluation, "checkpoint=latest", "paths.outputs=/nowhere")
    assert found == [
        "checkpoint=latest: no run of train.py at /nowhere/latest; run train.py first, or give checkpoint=PATH"
    ]


def test_build_names_the_key_of_what_it_cannot_build():
    with pytest.raises(ValueError, match="objective"):
        build({"_target_": "dflash.objective.objective.Objectiv"}, "objective")
    with pytest.raises(ValueError, match=r"draft: .*foo"):
        build({"_target_": "dflash.draft.shape.shape_draft", "_partial_": True, "foo": 1}, "draft")
    with pytest.raises(ValueError, match="check its _target_"):
        build({"_traget_": "dflash.draft.shape.shape_draft"}, "draft")


def test_constructors_are_the_third_net_and_speak_all_at_once(settings):
    plain = settings("+schedule.foo=1", "+optimizer.bar=2")
    with pytest.raises(ValueError, match=r"(?s)optimizer: .*bar.*schedule: .*foo"):
        build_parts(plain, {"optimizer": None, "schedule": None})


def test_a_missing_gpu_is_one_sentence(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^device=cuda: no CUDA GPU is visible here; .*trainer=cpu$"):
        ready_device("cuda")


def test_command_line_ends_with_one_message_and_no_trace(script):
    done = script("train.py", "target=random_llama", "blocksize=4", "draft.depth=0", "trainer=tpu")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("3 things are wrong with the configuration:") and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 4


def test_cfg_job_answers_within_three_seconds_of_processor_time(script):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = script("train.py", "--cfg", "job", "draft=depth8", "trainer=h100")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "depth: 8" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_composing_and_checking_import_nothing_heavy(script):
    code = "import sys, dflash.compose; print([m for m in ('torch', 'lightning', 'transformers') if m in sys.modules])"
    assert script("-c", code).stdout.strip() == "[]"


def test_a_folder_that_cannot_be_written_is_one_sentence(script):
    done = script("train.py", "target=random_llama", "paths.outputs=/dev/null/outputs")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("[Errno 20] Not a directory: '/dev/null/outputs/")
