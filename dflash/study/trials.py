"""Trials: an arm with a seed, composed and checked; and what trials share, so that nothing is computed twice.

Trials whose training settings are equal share one draft; those that see the same batches share the target's features.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dflash.compose import examine_settings, raise_findings
from dflash.study.definition import Arm, Study

# What training does not read: what is measured afterwards, where things are written, and when.
UNTRAINED_KEYS = ("name", "resume", "plan", "measure_untrained", "baselines", "paths", "callbacks", "logger")
WHEN_KEYS = ("eval_every", "checkpoint_every")
MEASURED_KEYS = ("prompts", "validation", "decoding")
ADDED_SINCE = {"matmul": "highest"}  # keys newer than the first results, with what those were trained with
STREAM_KEYS = ("target", "target_facts", "data", "seed", "accumulate", "device")


@dataclass(frozen=True)
class Trial:
    """One arm with one seed; ``settings`` are train.py's, plain and checked."""

    arm: Arm
    seed: int
    settings: Mapping[str, Any]

    @property
    def training(self) -> str:
        """Fingerprint of all that decides the draft: trials that agree share it."""
        dropped = (*UNTRAINED_KEYS, *MEASURED_KEYS, *WHEN_KEYS)
        kept = (pair for pair in self._placeless() if pair[0] not in dropped and pair not in ADDED_SINCE.items())
        return fingerprint(dict(kept))

    @property
    def stream(self) -> str:
        """Fingerprint of all that decides the batches: trials that agree share the target's features."""
        return fingerprint({key: value for key, value in self._placeless() if key in STREAM_KEYS})

    @property
    def measured(self) -> str:
        """Fingerprint of all that decides what is measured, training included."""
        kept = {key: value for key, value in self.settings.items() if key in MEASURED_KEYS and key != "validation"}
        return fingerprint([self.training, self.arm.block_decoded, kept])

    def _placeless(self) -> Iterator[tuple[str, Any]]:
        """The settings, without the folder in which regenerated responses are kept."""
        for key, value in self.settings.items():
            yield key, {k: v for k, v in value.items() if k != "cache"} if key == "data" else value


def fingerprint(value: Any) -> str:
    """Twelve hexadecimal digits that depend on every plain value in it."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def make_trials(study: Study) -> list[Trial]:
    """All trials, seed by seed, so that a study stopped half-way has compared all arms on the first seeds.

    Raises ValueError that lists what is wrong with every arm.
    """
    trials, findings = [], []
    for seed in study.seeds:
        for arm in study.arms:
            given = [*arm.overrides, f"seed={seed}", f"name=study_{study.name}"]
            settings, found = examine_settings("train", given)
            findings += [f"arm {arm.name}: {line}" for line in found]
            trials.append(Trial(arm, seed, settings))
    raise_findings(findings)
    return trials


def grouped(trials: Iterable[Trial], key: Callable[[Trial], Hashable]) -> Iterator[list[Trial]]:
    """Trials that agree in ``key``, together, in the order in which the first of each came."""
    first: dict[Hashable, int] = {}
    keyed = [(first.setdefault(key(trial), len(first)), trial) for trial in trials]
    for _, group in itertools.groupby(sorted(keyed, key=lambda pair: pair[0]), key=lambda pair: pair[0]):
        yield [trial for _, trial in group]
