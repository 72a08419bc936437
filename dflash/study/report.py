"""The report of a study: table, plot and what the intervals say, written into its README between two marks.

Everything outside the marks is people's: question, command, and the verdict, which this only prepares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dflash.evaluation.fields import MISSING, escape, figure, millions, percent
from dflash.evaluation.report import write_whole
from dflash.evaluation.tables import markdown_rows
from dflash.study.definition import Study
from dflash.study.plot import arms_plot
from dflash.study.results import Results
from dflash.study.statistics import Estimate
from dflash.study.summary import ArmSummary, summarise

BEGIN = "<!-- results: written by python -m dflash.study report -->"
END = "<!-- end of results -->"


def write_report(study: Study, results: Results) -> Path:
    """Write plot.png and the README's results into the folder of ``results``; the README's path.

    Raises ValueError where there are no results, or a README without the marks.
    """
    arms = summarise(study, results)
    if not arms:
        raise ValueError(
            f"study {study.name}: no results in {results.folder}; run python -m dflash.study run {study.name}"
        )
    path, source = results.folder / "README.md", study.folder / "README.md"
    text = source.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{source}: must hold the lines {BEGIN} and {END} once each, in this order")
    write_whole(results.folder / "plot.png", arms_plot(arms, title=study.title))
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_whole(path, before + BEGIN + "\n" + results_text(study, arms, results) + END + after)
    return path


def results_text(study: Study, arms: Sequence[ArmSummary], results: Results) -> str:
    """The results in markdown: table, plot, the compute of all arms, what the intervals say."""
    parts = [
        "",
        arms_table(arms),
        "![Acceptance and speedup of every arm](plot.png)",
        *conditions(study, arms, results),
    ]
    parts += [
        "**What the intervals say**",
        "\n".join(f"* {line}" for line in findings(arms)),
        f"Published: {study.published}",
    ]
    return "\n\n".join(parts) + "\n\n"


def arms_table(arms: Sequence[ArmSummary]) -> str:
    """A row per arm: acceptance, speedups and round costs by batch size, differences in pairs, and cost."""
    sizes = sorted({size for arm in arms for size in arm.speedups})
    headings = ["arm", "against", "acceptance (95 %)", "difference (95 %)"]
    headings += [word for size in sizes for word in (f"speedup, batch {size}", "difference", "round cost")]
    rows = []
    for arm in arms:
        row = [
            escape(arm.arm),
            escape(arm.against or MISSING),
            worded(arm.acceptance),
            signed(arm.acceptance_difference),
        ]
        for size in sizes:
            row += [
                worded(arm.speedups.get(size), "x"),
                signed(arm.speedup_differences.get(size)),
                figure(arm.round_costs.get(size)),
            ]
        rows.append([*row, millions(arm.num_parameters), figure(arm.train_seconds, ".0f"), str(len(arm.seeds))])
    return markdown_rows([*headings, "parameters", "training s", "seeds"], rows, left=2)


def worded(value: Estimate | None, unit: str = "") -> str:
    """ "2.67 (2.50 to 2.87)"."""
    return MISSING if value is None else f"{value.value:.2f}{unit} ({value.low:.2f} to {value.high:.2f})"


def signed(value: Estimate | None) -> str:
    """A difference, bold where its interval leaves zero out."""
    if value is None:
        return MISSING
    text = f"{value.value:+.2f} ({value.low:+.2f} to {value.high:+.2f})"
    return f"**{text}**" if value.sign else text


def conditions(study: Study, arms: Sequence[ArmSummary], results: Results) -> list[str]:
    """What all arms have in common, and what training cost."""
    tokens = [arm.train_tokens / 1e6 for arm in arms]
    steps = sorted({arm.steps for arm in arms})
    targets = dict.fromkeys(target for arm in arms for target in arm.targets)
    row = results.rows[0]
    lossless = (
        "every output equals the target's own"
        if all(arm.all_lossless for arm in arms)
        else ("**not lossless: " + ", ".join(arm.arm for arm in arms if not arm.all_lossless) + "**")
    )
    missing = [arm.name for arm in study.arms if arm.name not in {a.arm for a in arms}]
    common = [
        f"Target {', '.join(targets)}; {', '.join(map(str, steps))} steps, {_range(tokens)} M tokens a draft.",
        "The arms of a seed see the same batches where they share target and data.",
        f"{arms[0].num_prompts} held-out prompts, greedy, at most {row['max_new_tokens']} new tokens; {lossless}.",
        f"{percent(arms[0].repeated)} of the target's 4-grams repeat earlier ones of the same text.",
        "Round cost: in steps of the baseline at the same batch size.",
        "Intervals: bootstrap over prompts and seeds, crossed; differences in pairs, bold where zero is outside.",
        f"{row['machine']}, {row['threads']} threads, torch {row['torch']}.",
    ]
    parts = [" ".join(common)]
    return parts + ([f"**Not run yet: {', '.join(missing)}.**"] if missing else [])


def _range(values: Sequence[float]) -> str:
    low, high = (f"{bound:.2f}" for bound in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def findings(arms: Sequence[ArmSummary]) -> list[str]:
    """What can be said with 95 % confidence of each comparison, and which arms are first."""
    lines = []
    for against in dict.fromkeys(arm.against for arm in arms if arm.against is not None):
        compared = [arm for arm in arms if arm.against == against]
        lines += _sorted_out(f"Acceptance against {against}", {a.arm: a.acceptance_difference for a in compared})
        for size in sorted({size for arm in compared for size in arm.speedup_differences}):
            lines += _sorted_out(
                f"Speedup at batch {size} against {against}", {a.arm: a.speedup_differences.get(size) for a in compared}
            )
    best = max(arms, key=lambda arm: arm.acceptance.value)
    lines.append(f"Longest acceptance: {best.arm}, {worded(best.acceptance)}.")
    for size in sorted({size for arm in arms for size in arm.speedups}):
        fastest = max((arm for arm in arms if size in arm.speedups), key=lambda arm: arm.speedups[size].value)
        lines.append(f"Fastest at batch {size}: {fastest.arm}, {worded(fastest.speedups[size], 'x')}.")
    return lines


def _sorted_out(what: str, differences: Mapping[str, Estimate | None]) -> list[str]:
    """One line: who is above, who below, who is not told apart."""
    known = {name: value for name, value in differences.items() if value is not None}
    words = []
    for sign, word in ((1, "higher"), (-1, "lower"), (0, "not told apart")):
        names = [f"{name} ({value.value:+.2f})" for name, value in known.items() if value.sign == sign]
        words += [f"{word}: {', '.join(names)}"] if names else []
    return [f"{what}: {'; '.join(words)}."] if words else []
