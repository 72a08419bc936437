"""From rows to what a study says of each arm: figures over all seeds with intervals, and differences in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dflash.study.definition import Study
from dflash.study.results import Results, Row
from dflash.study.statistics import Estimate, Statistic, acceptance, difference, estimate, speedup


@dataclass(frozen=True)
class ArmSummary:
    """An arm over its seeds, greedy.

    by_seed: mean acceptance of each seed. speedups, round_costs: by batch size; a round's cost is in steps of the
    baseline. against: the arm of the differences, None for one that others are compared with. Seconds are of training,
    the target's features left out, means over seeds.
    """

    study: str
    arm: str
    seeds: tuple[int, ...]
    targets: tuple[str, ...]
    acceptance: Estimate
    by_seed: tuple[float, ...]
    speedups: Mapping[int, Estimate]
    round_costs: Mapping[int, float]
    num_parameters: int
    steps: int
    train_tokens: float
    train_seconds: float
    repeated: float
    num_prompts: int
    all_lossless: bool
    against: str | None = None
    acceptance_difference: Estimate | None = None
    speedup_differences: Mapping[int, Estimate] = field(default_factory=dict)


def summarise(study: Study, results: Results) -> list[ArmSummary]:
    """A summary of each arm that has rows, in the study's order.

    Raises ValueError where the rows of one arm were measured against different targets.
    """
    return [_summary(study, results, arm.name) for arm in study.arms if results.rows_of(arm.name)]


def _summary(study: Study, results: Results, name: str) -> ArmSummary:
    rows = _greedy(results.rows_of(name))
    targets = tuple(dict.fromkeys(row["target"] for row in rows))
    prints = {row["target_fingerprint"] for row in rows}
    if len(prints) > 1:
        raise ValueError(
            f"{results.path}: {name} was measured against {len(prints)} targets; run the study again, which measures "
            "what is not of the present one anew"
        )
    first = _of_batch(rows, min(_batches(rows)))
    against, pairs = study.arm(name).against, {}
    if against is not None:
        pairs = _differences(results, rows, _greedy(results.rows_of(against)))
    return ArmSummary(
        study=study.name,
        arm=name,
        seeds=tuple(row["seed"] for row in first),
        targets=targets,
        acceptance=estimate(_sample(results, first, "acceptance"), acceptance),
        by_seed=tuple(row["acceptance.mean"] for row in first),
        speedups=_speedups(results, rows),
        round_costs={size: _mean(_of_batch(rows, size), "speed.round_cost_ar_steps") for size in _batches(rows)},
        num_parameters=first[0]["num_parameters"],
        steps=first[0]["steps"],
        train_tokens=_mean(first, "train_tokens"),
        train_seconds=_mean(first, "train_seconds"),
        repeated=_mean(first, "repeated_4gram_share"),
        num_prompts=first[0]["num_prompts"],
        all_lossless=all(row["lossless.equal"] == row["lossless.total"] for row in rows),
        against=against,
        acceptance_difference=pairs.pop(0, None),
        speedup_differences=pairs,
    )


def _greedy(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["temperature"] == 0]


def _batches(rows: Sequence[Row]) -> list[int]:
    return sorted({row["batch_size"] for row in rows})


def _of_batch(rows: Sequence[Row], size: int) -> list[Row]:
    return sorted((row for row in rows if row["batch_size"] == size), key=lambda row: row["seed"])


def _mean(rows: Sequence[Row], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def _sample(results: Results, rows: Sequence[Row], group: str) -> np.ndarray:
    """[seeds, prompts, columns] of what is kept prompt by prompt."""
    return np.array([results.details(row)[group] for row in rows], dtype=np.float64)


def _speedups(results: Results, rows: Sequence[Row]) -> dict[int, Estimate]:
    return {size: estimate(_sample(results, _of_batch(rows, size), "speed"), speedup) for size in _batches(rows)}


def _differences(results: Results, rows: Sequence[Row], others: Sequence[Row]) -> dict[int, Estimate]:
    """0 -> the difference in acceptance, batch size -> in speedup; over the seeds that both arms have."""
    seeds = {row["seed"] for row in rows} & {row["seed"] for row in others}
    rows, others = ([row for row in side if row["seed"] in seeds] for side in (rows, others))
    sizes = sorted(set(_batches(rows)) & set(_batches(others)))
    found: dict[int, Estimate | None] = {}
    for size in sizes:
        pair = _of_batch(rows, size), _of_batch(others, size)
        found[size] = _paired(results, pair, "speed", speedup)
        if size == sizes[0]:
            found[0] = _paired(results, pair, "acceptance", acceptance)
    return {key: value for key, value in found.items() if value is not None}


def _paired(results: Results, pair, group: str, statistic: Statistic) -> Estimate | None:
    """None where the two did not decode the same prompts, as after the number of prompts was changed."""
    sample, other = (_sample(results, rows, group) for rows in pair)
    return difference(sample, other, statistic) if sample.shape == other.shape else None
