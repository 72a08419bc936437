"""The whole path at toy sizes: train, resume, evaluate a sweep of block sizes; and pre-training of a target."""

from __future__ import annotations

import csv
import inspect
import json
import shutil
from pathlib import Path

import hydra
import pytest
import torch
from safetensors.torch import load_file

from dflash.allocator import keep_freed_memory
from dflash.assemble.evaluate import evaluate
from dflash.assemble.pretrain import pretrain
from dflash.assemble.run import Phases
from dflash.assemble.train import TRAINED, UNTRAINED, distil
from dflash.compose import Run, build, check, register
from dflash.compose.keys import CONF
from dflash.data.corpus import is_held_out

ASSETS = CONF.parent / "assets" / "prompts"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A small corpus: a few files of the standard library, some of them held out."""
    folder = tmp_path_factory.mktemp("library")
    root = Path(inspect.getfile(json)).parent.parent
    names = sorted(path.name for path in root.glob("*.py") if 2_000 < path.stat().st_size < 30_000)
    shortest = sorted(names, key=lambda name: (root / name).stat().st_size)
    kept = [n for n in names if not is_held_out(n)][:6] + [n for n in shortest if is_held_out(n)][:1]
    for name in kept:
        shutil.copy(root / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def compose(tmp_path_factory):
    """(script, folder name, overrides) -> (settings, run) with every output in one temporary folder."""
    base = tmp_path_factory.mktemp("outputs")
    register()

    def settle(script: str, name: str, *overrides: str):
        every = [*overrides, f"paths.outputs={base}", f"prompts.path={ASSETS / 'held_out.jsonl'}"]
        if script == "train":
            every.append(f"validation.path={ASSETS / 'validation.jsonl'}")
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            settings = check(hydra.compose(script, overrides=every), config_name=script, overrides=every)
        return settings, Run(base / name, f"python {script}.py", {"given": name})

    return settle


@pytest.fixture(scope="module")
def smoke(compose, library):
    """The run of experiment=smoke, and its settings."""
    overrides = [
        "experiment=smoke",
        "callbacks=quiet",
        f"data.prompts.corpus_root={library}",
        f"paths.cache={library / 'cache'}",
        "decoding.temperatures=[0.0]",
        "features=stored",
    ]
    settings, run = compose("train", "smoke/1", *overrides)
    return distil(settings, run), run.folder, overrides


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_run_leaves_everything_behind(smoke, library):
    score, folder, _ = smoke
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    plots = {f"plots/{name}.png" for name in ("acceptance_by_step", "acceptance_histogram", "prefix_survival")}
    files = {"config.yaml", "metrics.csv", "report.json", "report.md", "measurements.csv", "checkpoints/last.ckpt"}
    assert written >= files | plots
    content = report(folder)
    assert [(m["label"], m["batch_size"]) for m in content["measurements"]] == [
        (TRAINED, 1),
        (UNTRAINED, 4),
        (TRAINED, 4),
    ]
    assert all(m["lossless"] == m["chain_walk"] == {"equal": 4, "total": 4} for m in content["measurements"])
    assert content["used"]["loss"].startswith("1.0 ForwardKL(temperature=1.0), weighted dpace(alpha=0.5)")
    assert "attention eager" in content["used"]["target"] and "float32" in content["used"]["target"]
    assert content["used"]["strategy"] == "SingleDeviceStrategy on 1 x CPUAccelerator"
    assert list(library.joinpath("cache", "features").rglob("*.safetensors"))
    assert score == content["measurements"][0]["acceptance"]["mean"] >= 1
    assert [point["step"] for point in content["curve"]] == [0, 10, 20]
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert any(row["acceptance/mean"] for row in rows) and any(row["train/loss"] for row in rows)
    assert (folder.parent.parent / "latest").resolve() == folder.resolve()


def test_the_newest_run_goes_on(smoke, compose):
    settings, run = compose("train", "smoke/2", *smoke[2], "resume=auto", "steps=24", "measure_untrained=false")
    distil(settings, run)
    assert [point["step"] for point in report(run.folder)["curve"]] == [0, 10, 20]
    assert len(report(run.folder)["measurements"]) == 2


def dear(*_, **__):
    raise AssertionError("something dear was begun")


def test_another_shape_is_refused_with_the_differences_before_the_target_answers(smoke, compose, monkeypatch):
    monkeypatch.setattr("dflash.assemble.train.make_data", dear)
    settings, run = compose("train", "smoke/3", *smoke[2], f"resume={smoke[1]}", "steps=24", "draft.depth=3")
    with pytest.raises(ValueError, match="depth: checkpoint 1, now 3"):
        distil(settings, run)


def test_rows_without_text_are_refused_before_the_target_is_loaded(compose, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "why?"}\n')
    settings, run = compose("train", "rows", "data=file", f"data.path={rows}")
    settings["target"] = {"_target_": f"{__name__}.dear", "_partial_": True}
    with pytest.raises(ValueError, match=r"rows.jsonl:1: no text: .*\['question'\]"):
        distil(settings, run)


def test_evaluation_takes_target_and_draft_from_the_run(smoke, compose):
    overrides = [f"checkpoint={smoke[1]}", "prompts.count=2", "decoding.max_new_tokens=8", "block_size=2"]
    settings, run = compose("evaluate", "evaluated", *overrides, "measure_untrained=true")
    evaluate(settings, run)
    content = report(run.folder)
    assert content["target"]["name"] == "random_gpt_oss_0" and content["settings"]["given"] == "evaluated"
    assert {m["block_size"] for m in content["measurements"]} == {2} and len(content["measurements"]) == 3
    assert settings["prompts"]["count"] == 2 and content["draft"]["block_size"] == 4


def test_pretraining_writes_a_model_folder(compose, library):
    values = ["steps=2", "eval_every=2", "checkpoint_every=1", "callbacks=quiet", "+task.architecture.num_layers=4"]
    sizes = ["task.vocab_size=300", "task.length=64", "task.batch_size=4", f"task.corpus_root={library}"]
    settings, run = compose("train", "target/1", "experiment=tiny_target", *values, *sizes)
    task = build(settings["task"], "task")
    assert task.func is pretrain
    bits = -task(settings, run)
    card = (run.folder / "target" / "README.md").read_text()
    assert card.startswith("# A tiny gpt-oss target") and "`GptOssForCausalLM`" in card
    assert 0 < bits < 12 and f"{bits:.4f}" in card and (run.folder / "checkpoints" / "last.ckpt").is_file()
    overrides = ["target=local", "draft.taps.count=1", f"target.path={run.folder / 'target'}"]
    loaded = build(compose("train", "unused", *overrides)[0]["target"], "target")()
    assert loaded.tokenizer.mask_token_id == loaded.mask_token_id and loaded.target.dims.vocab_size == 300


def test_pretraining_saves_the_mean_of_runs(compose, library):
    values = ["steps=1", "eval_every=1", "checkpoint_every=1", "callbacks=quiet", "+task.architecture.num_layers=2"]
    sizes = ["task.vocab_size=300", "task.length=64", "task.batch_size=4", f"task.corpus_root={library}"]
    weights, checkpoint, other = {}, None, []
    for name, more in {"one": [], "two": ["seed=1"], "mean": ["seed=1", "average"]}.items():
        if "average" in more:
            other = [f"task.average_with=[{checkpoint}]"]
        more = [option for option in more if option != "average"]
        settings, run = compose("train", f"target/{name}", "experiment=tiny_target", *values, *sizes, *more, *other)
        build(settings["task"], "task")(settings, run)
        weights[name] = load_file(run.folder / "target" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
        checkpoint = checkpoint or run.folder / "checkpoints" / "last.ckpt"
    assert not torch.equal(weights["one"], weights["two"])
    mean = (weights["one"].float() + weights["two"].float()) / 2
    torch.testing.assert_close(weights["mean"].float(), mean, atol=1e-3, rtol=1e-2)
    damaged = library / "damaged.ckpt"
    damaged.write_text("no checkpoint")
    for option, told in {
        "task.average_with=[nowhere.ckpt]": r"task.average_with='nowhere.ckpt': no such file",
        f"task.average_with=[{checkpoint}]": r"task.average_with='.*last.ckpt': its weights have other names or shapes",
        f"resume={checkpoint}": r"resume='.*last.ckpt': its weights have other names or shapes than this model",
        f"resume={damaged}": r"checkpoint .*damaged.ckpt cannot be read",
    }.items():
        wider = "task.vocab_size=301"  # than the model of the runs above
        settings, run = compose("train", "target/wrong", "experiment=tiny_target", *values, *sizes, wider, option)
        with pytest.raises(ValueError, match=told):
            build(settings["task"], "task")(settings, run)
        assert not (run.folder / "checkpoints").exists()


def test_phases_add_up_even_when_one_fails():
    phases = Phases()
    with pytest.raises(KeyError), phases("work"):
        raise KeyError
    assert phases.seconds["work"] >= 0


def test_the_allocator_is_asked_without_harm():
    assert keep_freed_memory() in (True, False)
