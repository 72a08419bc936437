"""A sweep before its first job: every job of it is composed and checked, so that none fails hours later for a typing
error.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from dflash.compose.checks import raise_findings
from dflash.compose.launch import examine_settings


class CheckSweep(Callback):
    """Hydra callback: checks all jobs of a sweep before one runs; ends the process with one message if any is wrong.

    Only where the jobs are known beforehand: sweepers that choose one job by the last (Optuna) go on as they are.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        sweeper = config.hydra.sweeper
        if not sweeper._target_.endswith(".BasicSweeper"):
            return
        params = [f"{key}={value}" for key, value in (OmegaConf.select(sweeper, "params") or {}).items()]
        found = findings_of_jobs(config.hydra.job.config_name, [*params, *config.hydra.overrides.task])
        try:
            raise_findings(found)
        except ValueError as error:
            sys.stderr.write(f"The sweep was not started. {error}\n")
            sys.exit(1)  # Hydra turns a callback's exceptions into warnings


def findings_of_jobs(config_name: str, arguments: Sequence[str]) -> list[str]:
    """What is wrong with the jobs that these arguments of a sweep spell out, and with which of them."""
    jobs = jobs_of(arguments)
    found: dict[str, list[int]] = {}
    for number, overrides in enumerate(jobs):
        for line in dict.fromkeys(examine_settings(config_name, overrides)[1]):
            found.setdefault(line, []).append(number)
    return [f"{line} ({_which(numbers, len(jobs))})" for line, numbers in found.items()]


def _which(numbers: list[int], count: int) -> str:
    if len(numbers) == count:
        return "every job"
    return f"job{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of 0 to {count - 1}"


def jobs_of(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every job: all combinations of what the arguments list, as Hydra's own sweeper takes them."""
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        key = override.get_key_element()
        if override.is_sweep_override() and not override.is_discrete_sweep():
            return []  # an interval, for which Hydra's own sweeper has its words
        if override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices[key] = [override.input_line]
    return [list(job) for job in itertools.product(*choices.values())]
