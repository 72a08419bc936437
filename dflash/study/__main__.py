"""``python -m dflash.study``: run studies, resume them, and write their tables, plots and the leaderboard.

python -m dflash.study list                       what there is, and what of it has been run
python -m dflash.study run depth                  run or continue a study, then write its report
python -m dflash.study run depth --seeds 0        one seed first
python -m dflash.study run depth --small          the small form: seconds, on a random target
python -m dflash.study report [depth]             tables, plots and leaderboard from the results there are
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table

from dflash.study.definition import EXPERIMENTS, Study, read_study, study_names
from dflash.study.leaderboard import write_leaderboard
from dflash.study.report import findings, write_report
from dflash.study.results import Results
from dflash.study.summary import summarise

SMALL = Path("outputs/studies_small")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_intermixed_args(arguments)
    console = Console(highlight=False)
    try:
        {"run": _run, "report": _report, "list": _list}[options.command](options, console)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except (KeyboardInterrupt, SystemExit):  # Lightning makes the latter of the former
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dflash.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "report", "list"))
    parser.add_argument("words", nargs="*", help="the study's name, then overrides of every arm, such as trainer=gpu")
    parser.add_argument("--small", action="store_true", help="the small form, which tests that everything runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="only these seeds, or others than the study's own")
    parser.add_argument("--out", type=Path, help="folder of the results (default: the study's own in experiments/)")
    parser.add_argument("--drafts", type=Path, default=Path("outputs/studies"), help="folder of checkpoints")
    parser.add_argument("--keep-drafts", action="store_true", help="keep the checkpoints of measured drafts")
    return parser


def _run(options: argparse.Namespace, console: Console) -> None:
    from dflash.study.run import run_study  # torch and transformers: only where something runs

    if not options.words:
        raise ValueError(f"run: say which study, one of {', '.join(study_names())}")
    study = _study(options, options.words[0])
    results = _results(options, study)
    run_study(study, results, console, drafts=options.drafts, keep_drafts=options.keep_drafts)
    _write(study, results, console)
    if not _elsewhere(options):
        _write_leaderboard(options, console)


def _report(options: argparse.Namespace, console: Console) -> None:
    names = [word for word in options.words if "=" not in word]
    for name in names or study_names():
        study = _study(options, name)
        results = _results(options, study)
        if results.rows or names:
            _write(study, results, console)
    if not _elsewhere(options):
        _write_leaderboard(options, console)


def _list(options: argparse.Namespace, console: Console) -> None:
    table = Table(
        Column("study", no_wrap=True), "question", "arms x seeds", "expected minutes", "trials measured", box=None
    )
    for name in study_names():
        study = _study(options, name)
        done = {(row["arm"], row["seed"]) for row in _results(options, study).rows}
        size = f"{len(study.arms)} x {len(study.seeds)}"
        table.add_row(name, study.question, size, f"{study.minutes:g}", f"{len(done)}")
    console.print(table)


def _study(options: argparse.Namespace, name: str) -> Study:
    overrides = [word for word in options.words if "=" in word]
    if overrides and not _elsewhere(options):
        raise ValueError(
            f"{' '.join(overrides)}: changes every arm of {name}; give --out FOLDER, or its results would replace the "
            "study's own"
        )
    study = read_study(name, small=options.small, extra=overrides)
    return dataclasses.replace(study, seeds=tuple(options.seeds)) if options.seeds else study


def _elsewhere(options: argparse.Namespace) -> bool:
    """Whether results are not those of the study itself, and so no part of the leaderboard."""
    return options.small or options.out is not None


def _results(options: argparse.Namespace, study: Study) -> Results:
    usual = SMALL / study.name if options.small else study.folder
    return Results(usual if options.out is None else options.out / study.name)


def _write(study: Study, results: Results, console: Console) -> None:
    path = write_report(study, results)
    for line in findings(summarise(study, results)):
        console.print(f"* {line}", markup=False)
    console.print(f"results: {results.path}\nreport: {path}", soft_wrap=True, markup=False)


def _write_leaderboard(options: argparse.Namespace, console: Console) -> None:
    studies = [read_study(name) for name in study_names()]
    arms = [arm for study in studies for arm in summarise(study, Results(study.folder))]
    if arms:
        console.print(f"leaderboard: {write_leaderboard(arms, EXPERIMENTS)}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    sys.exit(main())
