"""Composition: the only code that knows Hydra, apart from the two scripts.

Heavy libraries are not imported here, so that --help, --cfg and a wrong key answer at once.
"""

from dflash.compose.build import build
from dflash.compose.checks import check, raise_findings, resolve_checkpoint
from dflash.compose.job import CombineReports, Run, current_run, write_config
from dflash.compose.launch import examine_settings, launch, plain_errors, read_settings
from dflash.compose.schema import register
from dflash.compose.sweep import CheckSweep

__all__ = [
    "CheckSweep",
    "CombineReports",
    "Run",
    "build",
    "check",
    "current_run",
    "examine_settings",
    "launch",
    "plain_errors",
    "raise_findings",
    "read_settings",
    "register",
    "resolve_checkpoint",
    "write_config",
]
