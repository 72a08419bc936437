"""One leaderboard over all studies: every arm that was measured, the longest acceptance first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dflash.evaluation.fields import MISSING, escape, figure, millions
from dflash.evaluation.report import csv_text, write_whole
from dflash.evaluation.tables import markdown_rows
from dflash.study.plot import arms_plot
from dflash.study.report import worded
from dflash.study.summary import ArmSummary

BATCHES = (1, 8)
PLOTTED = 30
HEAD = """\
# Leaderboard

Every arm of every study that was run, the longest acceptance first. Figures are means over seeds with 95 % bootstrap
intervals over prompts and seeds; speedups are over plain decoding with a key-value cache, prefill left out. Studies
train for different numbers of steps: compare arms of one study, and look at steps before comparing others.
Written by `python -m dflash.study report`.
"""


def write_leaderboard(arms: Sequence[ArmSummary], folder: Path) -> Path:
    """Write leaderboard.md, leaderboard.csv and leaderboard.png into ``folder``; the path of the first."""
    arms = sorted(arms, key=lambda arm: arm.acceptance.value, reverse=True)
    write_whole(folder / "leaderboard.csv", csv_text([_flat(arm) for arm in arms], first=list(_flat(arms[0]))))
    title = "Leaderboard" if len(arms) <= PLOTTED else f"Leaderboard: the first {PLOTTED} of {len(arms)}"
    write_whole(folder / "leaderboard.png", arms_plot(arms[:PLOTTED], title=title, with_study=True))
    path = folder / "leaderboard.md"
    picture = "![Acceptance and speedup of the first arms](leaderboard.png)"
    write_whole(path, "\n".join([HEAD, leaderboard_table(arms), "", picture, ""]))
    return path


def leaderboard_table(arms: Sequence[ArmSummary]) -> str:
    """A row per arm: acceptance, speedup at batch 1 and 8, parameters, steps and training seconds."""
    headings = ["study", "arm", "target", "acceptance (95 %)", *(f"speedup, batch {size}" for size in BATCHES)]
    rows = [
        [
            f"[{arm.study}]({arm.study}/README.md)",
            escape(arm.arm),
            escape(", ".join(Path(target).name for target in arm.targets)),
            worded(arm.acceptance),
            *(worded(arm.speedups.get(size), "x") for size in BATCHES),
            millions(arm.num_parameters) if arm.num_parameters else MISSING,
            str(arm.steps),
            figure(arm.train_seconds, ".0f"),
        ]
        for arm in arms
    ]
    return markdown_rows([*headings, "parameters", "steps", "training s"], rows, left=3)


def _flat(arm: ArmSummary) -> dict:
    values = {"study": arm.study, "arm": arm.arm, "target": " ".join(arm.targets), "num_seeds": len(arm.seeds)}
    estimates = {"acceptance": arm.acceptance, **{f"speedup_batch_{s}": arm.speedups.get(s) for s in BATCHES}}
    for name, value in estimates.items():
        for part in ("value", "low", "high"):
            key = name if part == "value" else f"{name}.{part}"
            values[key] = None if value is None else vars(value)[part]
    costs = ("num_parameters", "steps", "train_tokens", "train_seconds")
    return values | {key: vars(arm)[key] for key in costs}
