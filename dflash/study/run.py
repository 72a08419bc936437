"""Runs a study: trains each draft once, measures each trial, writes its rows; goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from dflash.assemble.parts import build_parts, ready_device
from dflash.compose import Run, build, read_settings
from dflash.draft.draft import Draft
from dflash.evaluation.report import PACKAGES, provenance
from dflash.study.bench import Bench, make_bench, measure_trial, train_draft
from dflash.study.definition import Study
from dflash.study.progress import StudyProgress, measuring_work, share_of, study_progress, training_work
from dflash.study.results import Results
from dflash.study.trials import Trial, fingerprint, grouped, make_trials
from dflash.target.load import LoadedTarget

DEFAULT_PROMPTS = 64


@dataclass(frozen=True)
class Plan:
    """All trials of a study, those still to be run, and the targets they are about, by the settings that name them."""

    study: Study
    trials: Sequence[Trial]
    todo: Sequence[Trial]
    targets: dict[str, LoadedTarget]

    def loaded(self, trial: Trial) -> LoadedTarget:
        return self.targets[_target_key(trial)]


def run_study(study: Study, results: Results, console: Console, *, drafts: Path, keep_drafts: bool = False) -> None:
    """Run what is missing of a study. ``drafts``: where checkpoints lie while a draft is in use, or for good.

    Raises ValueError for whatever is wrong with an arm, before anything is trained.
    """
    prepare(study, console)
    plan = make_plan(study, results, console)
    many = f"{len(study.arms)} arms x {len(study.seeds)} seeds"
    console.print(f"study {study.name}: {many}, {len(plan.todo)} of {len(plan.trials)} trials to run", highlight=False)
    with study_progress(console, sum(_work(trial) for trial in plan.todo) + _training(plan.todo)) as progress:
        for stream in grouped(plan.todo, lambda trial: trial.stream):
            _run_stream(plan, stream, results, progress, console, drafts=drafts, keep_drafts=keep_drafts)


def prepare(study: Study, console: Console) -> None:
    """Make what arms need and what is not there yet, each by its own run of train.py."""
    for step in study.prepare:
        if Path(step.makes).exists():
            continue
        console.print(f"study {study.name} needs {step.makes}: python train.py {' '.join(step.overrides)}")
        settings = read_settings("train", step.overrides)
        folder = Path(settings["paths"]["outputs"]) / settings["name"] / f"study_{study.name}"
        build(settings["task"], "task")(settings, Run(folder, f"python train.py {' '.join(step.overrides)}"))


def make_plan(study: Study, results: Results, console: Console) -> Plan:
    """Compose and check every trial, load the targets, and see what results there are already."""
    trials = make_trials(study)
    targets: dict[str, LoadedTarget] = {}
    for trial in trials:
        ready_device(trial.settings["device"])
        if _target_key(trial) not in targets:
            targets[_target_key(trial)] = build_parts(trial.settings, {"target": None})["target"]()
    prints = {key: short_fingerprint(loaded) for key, loaded in targets.items()}
    todo = [
        trial
        for trial in trials
        if not results.finished(
            trial.arm.name, trial.seed, measured=trial.measured, target_fingerprint=prints[_target_key(trial)]
        )
    ]
    stale = [trial for trial in todo if results.rows_of(trial.arm.name, trial.seed)]
    if stale:
        console.print(
            f"{len(stale)} trials were measured with other settings or against another target; they are run anew"
        )
    return Plan(study, trials, todo, targets)


def _run_stream(
    plan: Plan,
    stream: Sequence[Trial],
    results: Results,
    progress: StudyProgress,
    console: Console,
    *,
    drafts: Path,
    keep_drafts: bool,
) -> None:
    """All trials that see the same batches: each draft in turn, and the arms that share it."""
    loaded = plan.loaded(stream[0])
    with progress.phase(f"seed {stream[0].seed}: responses of the target", work=0, units=1):
        bench = make_bench(stream, loaded, Console(quiet=True))
    for sharing in grouped(stream, lambda trial: trial.training):
        first = sharing[0]
        folder = drafts / plan.study.name / f"{first.training}-{short_fingerprint(loaded)}"
        what = f"{share_of(plan.trials, first)}: {first.arm.name}, seed {first.seed}"
        with progress.phase(f"{what}, training", work=training_work(first), units=first.settings["steps"]) as phase:
            draft, cost = train_draft(first, bench, folder, phase.at)
        for trial in sharing:
            _measure(plan, trial, draft, cost, bench, results, progress)
            console.print(_finished_line(results, trial), highlight=False)
        if not keep_drafts:
            shutil.rmtree(folder, ignore_errors=True)


def _measure(
    plan: Plan, trial: Trial, draft: Draft, cost: dict, bench: Bench, results: Results, progress: StudyProgress
) -> None:
    decoding = trial.settings["decoding"]
    most = 2 * _num_prompts(trial) * decoding["max_new_tokens"] * len(decoding["batch_sizes"])
    what = f"{share_of(plan.trials, trial)}: {trial.arm.name}, seed {trial.seed}, measuring"
    with progress.phase(what, work=_work(trial), units=most) as phase:
        measurements = measure_trial(trial, draft, bench.loaded, phase.add)
    head = {"arm": trial.arm.name, "seed": trial.seed, "target": bench.loaded.target.name, **cost}
    results.add(head, measurements, _origin(trial, bench.loaded))


def _origin(trial: Trial, loaded: LoadedTarget) -> dict:
    """How a row was come by."""
    made = provenance("", seed=trial.seed, threads=torch.get_num_threads(), packages=PACKAGES)
    return {
        "measured": trial.measured,
        "target_fingerprint": short_fingerprint(loaded),
        "machine": made["machine"],
        "threads": made["threads"],
        "torch": made["versions"]["torch"],
        "git_commit": made["git_commit"],
    }


def _finished_line(results: Results, trial: Trial) -> str:
    row = results.rows_of(trial.arm.name, trial.seed)[0]
    speedup = row.get("speed.total_speedup")
    return f"{trial.arm.name}, seed {trial.seed}: acceptance {row['acceptance.mean']:.2f}" + (
        "" if speedup is None else f", speedup {speedup:.2f}x at batch {row['batch_size']}"
    )


def short_fingerprint(loaded: LoadedTarget) -> str:
    """Enough of a target's fingerprint to tell two apart."""
    return loaded.target.fingerprint()[:12]


def _target_key(trial: Trial) -> str:
    return fingerprint(trial.settings["target"])


def _num_prompts(trial: Trial) -> int:
    return trial.settings["prompts"].get("count") or DEFAULT_PROMPTS


def _work(trial: Trial) -> float:
    return measuring_work(trial, num_prompts=_num_prompts(trial))


def _training(todo: Sequence[Trial]) -> float:
    """Work of all drafts still to be trained, shared ones once."""
    return sum(training_work(sharing[0]) for sharing in grouped(todo, lambda trial: trial.training))
