"""Study files: what is read from them, what is refused, and that every arm of every committed study composes."""

from __future__ import annotations

import pytest
import yaml
from toy_study import TOY

from dflash.compose import read_settings
from dflash.study.definition import EXPERIMENTS, Arm, read_study, study_names
from dflash.study.report import BEGIN, END
from dflash.target.families import qwen3_config

STUDIES = study_names()


def test_there_are_studies_for_the_levers():
    levers = {"depth", "taps", "block_size", "objective", "heads", "verifier", "anchors", "second_target"}
    assert set(STUDIES) >= levers


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_composes_in_both_forms(name, tmp_path):
    qwen3_config(vocab_size=4096).save_pretrained(tmp_path)  # stands for what a study prepares
    study, small = read_study(name), read_study(name, small=True)
    special = [arm for arm in small.arms if "small" in (yaml_arm(name, arm) or ())]
    made = [step.makes for step in study.prepare]
    for arm in [*study.arms, small.arms[0], *special[:1]]:
        given = [f"target.path={tmp_path}" if o.partition("=")[2] in made else o for o in arm.overrides]
        settings = read_settings("train", [*given, "seed=1"])
        assert settings["callbacks"]["acceptance"] is None and settings["decoding"]["temperatures"] == [0.0]
    for step in study.prepare:
        assert read_settings("train", step.overrides)["task"]["save_to"] == step.makes


def yaml_arm(name: str, arm: Arm):
    values = yaml.safe_load((EXPERIMENTS / name / "study.yaml").read_text())["arms"][arm.name]
    return values if isinstance(values, dict) else None


@pytest.mark.parametrize("name", STUDIES)
def test_every_readme_has_commands_results_and_a_verdict(name):
    study, text = read_study(name), (EXPERIMENTS / name / "README.md").read_text()
    assert text.startswith(f"# {study.title}\n") and study.question in text
    assert text.count(BEGIN) == text.count(END) == 1 and "\n## Verdict\n" in text
    assert f"python -m dflash.study run {name} " in text and f"python train.py -m name=study_{name} " in text
    assert f"{study.minutes:g} minutes" in text and f"{len(study.arms)} arms" in text
    assert (EXPERIMENTS / name / "sweep.yaml").is_file() and f"| {study.question} | {study.minutes:g} |" in (
        EXPERIMENTS / "README.md"
    ).read_text()


def test_the_small_form_comes_last_but_for_what_an_arm_chose(write_study):
    arms = {
        "plain": {"overrides": ["steps=7"], "block_decoded": 4},
        "other": {"overrides": ["target=local", "target.path=x"], "small": ["target=random_qwen3", "data=corpus"]},
    }
    root = write_study(TOY | {"arms": arms, "base": ["steps=9"]})
    plain, other = read_study("toy", root=root, small=True, extra=["clip=2.0"]).arms
    assert [o for o in plain.overrides if o.startswith("steps=")] == ["steps=9", "steps=7"]
    assert plain.overrides[-1] == "clip=2.0" and "target=random_gpt_oss" in plain.overrides
    assert (plain.against, plain.block_decoded, other.against) == (None, 4, "plain")
    assert "target=random_gpt_oss" not in other.overrides and "target.path=x" not in other.overrides
    assert not any(o.startswith("data.") for o in other.overrides)
    assert "target.path=x" in read_study("toy", root=root).arm("other").overrides


def test_every_mistake_is_told(write_study):
    arms = {"Plain": ["a=b"], "x": "a=b", "y": {"overrides": [], "block_decoded": 0, "against": "z", "batch": 3}}
    root = write_study({**TOY, "arms": arms, "seed": 1, "seeds": [], "base": "steps=3"})
    with pytest.raises(ValueError, match="is not a study") as caught:
        read_study("toy", root=root)
    told = str(caught.value)
    for part in (
        "seed: no such key",
        "base=steps=3: must be a list",
        "seeds=[]: must name at least one",
        "baseline=plain: is no arm; choose one of Plain, x, y",
        "arms.Plain: use small letters",
        "arms.x: must be a list of overrides",
        "arms.y.batch: no such key",
        "arms.y.against=z: is no arm",
        "arms.y.block_decoded=0: must be a whole number",
    ):
        assert part in told


def test_a_study_that_is_not_there_names_those_that_are(write_study):
    root = write_study(TOY)
    with pytest.raises(ValueError, match="choose one of toy"):
        read_study("dept", root=root)
    (root / "toy" / "study.yaml").write_text("arms: [")
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        read_study("toy", root=root)
    (root / "toy" / "study.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="must be a mapping with the keys title"):
        read_study("toy", root=root)
