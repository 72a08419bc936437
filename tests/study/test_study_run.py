"""Whole studies on a random target: drafts as train.py trains them, shared where they may be, resumed anywhere."""

from __future__ import annotations

import dataclasses
import io
import shutil

import pytest
import torch
from rich.console import Console
from toy_study import TOY

from dflash.assemble.train import distil
from dflash.compose import Run, read_settings
from dflash.study import run as running
from dflash.study.bench import measure_trial, train_draft
from dflash.study.definition import read_study
from dflash.study.leaderboard import write_leaderboard
from dflash.study.report import write_report
from dflash.study.results import Results
from dflash.study.run import run_study
from dflash.study.summary import summarise
from dflash.study.trials import make_trials
from dflash.training.checkpoint import find_checkpoint, read_checkpoint

FIGURES = ("acceptance.mean", "acceptance.num_rounds", "num_parameters", "steps", "train_tokens", "lossless.equal")


class Killed(Exception):
    """What ends a process in the middle of its work."""


def run(study, folder, **options) -> tuple[Results, str]:
    console = Console(file=io.StringIO(), width=160)
    results = Results(folder)
    run_study(study, results, console, drafts=folder / "drafts", **options)
    return results, console.file.getvalue()


def figures(results: Results) -> dict:
    return {(row["arm"], row["seed"], row["batch_size"]): tuple(row[key] for key in FIGURES) for row in results.rows}


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory) -> tuple[Results, str]:
    """The toy study, run once with its drafts kept; and what it said."""
    return run(toy, tmp_path_factory.mktemp("whole"), keep_drafts=True)


def test_a_draft_of_a_study_is_the_one_that_train_py_trains(toy, whole, tmp_path):
    results, said = whole
    assert len(results.rows) == 3 * 2 * 2 and "6 of 6 trials to run" in said
    assert all(row["lossless.equal"] == row["lossless.total"] == 3 for row in results.rows)
    folders = {path.name.partition("-")[0]: path for path in (results.folder / "drafts" / "toy").iterdir()}
    assert len(folders) == 4  # two seeds of two drafts: the tree is decoded with the plain draft
    for trial in (trial for trial in make_trials(toy) if trial.seed == 1 and trial.arm.name != "tree"):
        alone = tmp_path / trial.arm.name
        given = [*trial.arm.overrides, "seed=1", f"paths.outputs={alone}"]
        distil(read_settings("train", given), Run(alone, "python train.py", {}))
        ours, theirs = (read_checkpoint(find_checkpoint(f)) for f in (folders[trial.training], alone))
        assert ours["global_step"] == theirs["global_step"] == 3
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        assert all(torch.equal(weight, theirs["state_dict"][key]) for key, weight in ours["state_dict"].items())


def test_a_study_goes_on_where_it_was_killed(toy, whole, tmp_path, monkeypatch):
    trained, measured, study = [], [], dataclasses.replace(toy, seeds=(0,))

    def killed_in_training(trial, bench, folder, on_step):
        def step(done: int) -> None:
            on_step(done)
            if done == 2:
                raise Killed

        trained.append((trial.arm.name, trial.seed))
        return train_draft(trial, bench, folder, step)

    def killed_in_measuring(trial, *rest):
        measured.append(trial.arm.name)
        if len(measured) == 2:
            raise Killed
        return measure_trial(trial, *rest)

    for name, killed in (("train_draft", killed_in_training), ("measure_trial", killed_in_measuring)):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(running, name, killed)
            run(study, tmp_path)
        (checkpoint,) = tmp_path.glob("drafts/toy/*/checkpoints/last.ckpt")
        assert read_checkpoint(checkpoint)["global_step"] == {"train_draft": 2, "measure_trial": 3}[name]
    assert trained == [("plain", 0)] and {row["arm"] for row in Results(tmp_path).rows} == {"plain"}
    results, said = run(study, tmp_path)
    assert "2 of 3 trials to run" in said
    assert figures(results) == {key: values for key, values in figures(whole[0]).items() if key[1] == 0}
    assert not list(tmp_path.glob("drafts/toy/*"))


def test_nothing_is_run_twice_but_what_has_changed(toy, whole, small_corpus, tmp_path):
    shutil.copytree(whole[0].folder, tmp_path / "out")
    again, said = run(toy, tmp_path / "out")
    assert "0 of 6 trials to run" in said and figures(again) == figures(whole[0])
    decoded = [dataclasses.replace(arm, block_decoded=2) if arm.name == "tree" else arm for arm in toy.arms]
    changed, said = run(dataclasses.replace(toy, arms=tuple(decoded), seeds=(0,)), tmp_path / "out")
    assert "1 of 3 trials to run" in said and "1 trials were measured with other settings" in said
    assert {row["block_size"] for row in changed.rows_of("tree", 0)} == {2}
    assert {row["block_size"] for row in changed.rows_of("tree", 1)} == {8}


def test_report_and_leaderboard(toy, whole, tmp_path):
    shutil.copytree(whole[0].folder, tmp_path / "out", ignore=shutil.ignore_patterns("drafts"))
    results = Results(tmp_path / "out")
    plain, tree, tapped = arms = summarise(toy, results)
    assert plain.against is None and plain.acceptance_difference is None
    assert tree.num_parameters == plain.num_parameters < tapped.num_parameters
    assert set(tree.speedup_differences) == set(tree.speedups) == {1, 2}
    assert tapped.acceptance_difference.value == pytest.approx(tapped.acceptance.value - plain.acceptance.value)
    rows = results.rows_of("tapped")
    pooled = sum(row["acceptance.num_tokens"] for row in rows) / sum(row["acceptance.num_rounds"] for row in rows)
    assert tapped.acceptance.value == pytest.approx(pooled)  # both batch sizes decode the same rounds
    path = write_report(toy, results)
    text = path.read_text()
    assert text.startswith("# Toy\n") and text.endswith("## Verdict\n\nKept.\n")
    assert text.count("| tapped | plain |") == 1 and write_report(toy, results).read_text() == text
    assert (path.parent / "plot.png").read_bytes().startswith(b"\x89PNG")
    board = write_leaderboard(arms, tmp_path / "board")
    listed = [line.split("|")[2].strip() for line in board.read_text().splitlines() if line.startswith("| [toy]")]
    assert listed == [arm.arm for arm in sorted(arms, key=lambda arm: -arm.acceptance.value)]
    assert len((board.parent / "leaderboard.csv").read_text().splitlines()) == 4


def test_rows_of_one_arm_against_two_targets_are_refused(toy, whole, tmp_path):
    shutil.copytree(whole[0].folder, tmp_path / "out", ignore=shutil.ignore_patterns("drafts"))
    results = Results(tmp_path / "out")
    results.rows[0]["target_fingerprint"] = "other"
    with pytest.raises(ValueError, match="plain was measured against 2 targets"):
        summarise(toy, results)


def test_wrong_arms_are_told_together_before_anything_runs(write_study, tmp_path):
    arms = {
        "plain": ["steps=0"],
        "wrong": ["draft=depth9"],
        "other": ["verify=ddtree", "decoding.verifier.num_nodes=0"],
    }
    study = read_study("toy", root=write_study(TOY | {"arms": arms, "seeds": [0]}))
    with pytest.raises(ValueError, match="wrong with the configuration") as caught:
        run(study, tmp_path / "out")
    told = str(caught.value)
    assert "arm plain: steps=0: must be" in told and "arm wrong: draft=depth9: choose one of depth1" in told
    assert "arm other: decoding.verifier.num_nodes=0: must be" in told and not (tmp_path / "out").exists()
