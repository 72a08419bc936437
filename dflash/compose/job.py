"""The running job: where it writes, what was asked for, and one table over all jobs of a sweep."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dflash.compose.keys import key_of


@dataclass(frozen=True)
class Run:
    """Where a run writes, and what was asked for: the command and its overrides by key."""

    folder: Path
    command: str
    overrides: dict[str, Any] = field(default_factory=dict)


def current_run() -> Run:
    """The folder and the request of the running job."""
    job = HydraConfig.get()
    pairs = [override.partition("=") for override in job.overrides.task]
    overrides = {key_of(key): OmegaConf.create({"v": value}).v for key, _, value in pairs}
    command = " ".join(["python", Path(sys.argv[0]).name, *job.overrides.task])
    return Run(Path(job.runtime.output_dir), command, {k: number_or_text(v) for k, v in overrides.items()})


def number_or_text(text: str) -> Any:
    """The whole number or the float that ``text`` spells, else the text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def write_config(config: dict, path: Path) -> None:
    """The plain configuration as YAML; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")


class CombineReports(Callback):
    """Hydra callback: after every job of a sweep, and at its end, one table and plot over the jobs so far."""

    def on_job_end(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            self._combine(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        path = self._combine(config)
        if path is not None:
            sys.stdout.write(f"{path}\n")

    def _combine(self, config: DictConfig) -> Path | None:
        from dflash.evaluation.combine import combine  # matplotlib: a second that only sweeps pay

        return combine(config.hydra.sweep.dir, title=f"Sweep {config.name}")
