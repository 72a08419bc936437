"""Starting a script, and telling its user's mistakes in one message without a trace."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dflash.compose.checks import examine, first_line, kind_of, raise_findings
from dflash.compose.keys import CONF, is_group, key_of
from dflash.compose.schema import register

FULL_ERROR = "HYDRA_FULL_ERROR"


@contextmanager
def plain_errors() -> Iterator[None]:
    """Inside a job: a user's mistake ends the process with one message; in a sweep the other jobs still run."""
    try:
        yield
    except ValueError as error:
        if _wants_trace() or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


def _wants_trace() -> bool:
    return os.environ.get(FULL_ERROR) == "always"


def launch(main: Callable[[], Any], *, config_name: str) -> int:
    """Run a script's Hydra main; the exit code. Mistakes are told in one message, without a trace.

    With HYDRA_FULL_ERROR=1 in the environment, errors keep their traces.
    """
    register()
    # Hydra prints its own errors one at a time and with advice for its developers; told to, it lets us have them.
    os.environ[FULL_ERROR] = "always" if FULL_ERROR in os.environ else "1"
    try:
        main()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if _wants_trace():
            raise
        arguments = sys.argv[1:]
        composing = isinstance(error, HydraException) and not any(a.startswith("-") for a in arguments)
        findings = composition_findings(config_name, arguments) if composing else []
        try:
            raise_findings(findings or [])
        except ValueError as listed:
            error = listed
        sys.stderr.write(f"{error}\n" if not isinstance(error, HydraException) else f"{first_line(error)}\n")
        return 1
    except KeyboardInterrupt:
        if _wants_trace():
            raise
        sys.stderr.write("interrupted; what was written so far is kept\n")
        return 128 + signal.SIGINT  # as shells do
    except OSError as error:  # a folder that cannot be written, a disk that is full
        if _wants_trace():
            raise
        sys.stderr.write(f"{error}; what was written so far is kept\n")
        return 1
    except RuntimeError as error:
        if not str(error).startswith("Unknown plugin class"):  # Hydra's words for a launcher that is not installed
            raise
        sys.stderr.write(
            f"{error}; install the extra that has it: pip install 'dflash-lab[submitit]' (joblib, optuna)\n"
        )
        return 1
    return 0


def read_settings(config_name: str, overrides: Sequence[str]) -> dict:
    """Checked plain settings with these overrides, for programs that Hydra does not start.

    Raises ValueError that lists every finding.
    """
    settings, findings = examine_settings(config_name, overrides)
    raise_findings(findings)
    return settings


def examine_settings(config_name: str, overrides: Sequence[str]) -> tuple[dict, list[str]]:
    """(plain settings with these overrides, what is wrong with them)."""
    register()
    with _ready():
        try:
            config = hydra.compose(config_name, overrides=list(overrides))
        except (HydraException, OmegaConfBaseException):
            findings = composition_findings(config_name, overrides)
            if not findings:
                raise
            return {}, findings
        return examine(config, config_name, list(overrides))


def _ready():
    """Hydra ready to compose: as it is where it runs already, else over conf/ for a while."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF))


def composition_findings(config_name: str, overrides: Sequence[str]) -> list[str]:
    """What is wrong with a command line that does not compose: each override is tried on top of the good ones."""
    good, findings = [], []
    with _ready():
        for override in sorted(overrides, key=lambda o: not is_group(o)):
            try:
                hydra.compose(config_name, overrides=[*good, override])
                good.append(override)
            except (HydraException, OmegaConfBaseException) as error:
                findings.append(_explain(override, error, config_name, good))
        try:
            return findings + examine(hydra.compose(config_name, overrides=good), config_name, good)[1]
        except (HydraException, OmegaConfBaseException) as error:
            return [*findings, first_line(error)]


def _explain(override: str, error: Exception, config_name: str, good: Sequence[str]) -> str:
    key = key_of(override)
    if is_group(override):
        options = sorted(file.stem for file in (CONF / key).glob("*.yaml"))
        if override.partition("=")[2] in options:  # an option there is, but not for this script
            return f"{override}: {first_line(error)}"
        return f"{override}: choose one of {', '.join(options)}"
    config = hydra.compose(config_name, overrides=list(good))
    keys = list(_dotted(config)) + [path.name for path in CONF.iterdir() if path.is_dir()]
    if "=" in override and key not in keys and not override.startswith("+"):
        near = difflib.get_close_matches(key, keys, n=1) or [k for k in keys if k.endswith(f".{key}")][:1]
        return f"{override}: there is no key {key}; " + (
            f"did you mean {near[0]}?" if near else "see --cfg job for all"
        )
    own = OmegaConf.select(config, key) if key in keys else None
    example = "" if own is None or isinstance(own, DictConfig) else f"; it is {kind_of(own)}, as in {key}={own}"
    return f"{override}: {first_line(error.__cause__ or error)}{example}"


def _dotted(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        child = config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from _dotted(child, f"{prefix}{key}.")
