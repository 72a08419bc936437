"""Sweep files of experiments/: every value of every parameter composes and passes the checks."""

from __future__ import annotations

import pytest
import yaml

from dflash.compose.keys import CONF

SWEEPS = sorted((CONF.parent / "experiments").glob("*/sweep.yaml"))


def _word(value) -> str:
    """As W&B's agent writes it on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.parent.name)
def test_every_value_of_a_sweep_composes(path, settings):
    sweep = yaml.safe_load(path.read_text())
    assert sweep["program"] == "train.py"
    assert sweep["command"] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
    values = {key: spec["values"] if "values" in spec else [spec["value"]] for key, spec in sweep["parameters"].items()}
    for job in range(max(map(len, values.values()))):
        settings(*(f"{key}={_word(choices[job % len(choices)])}" for key, choices in values.items()))
    assert (path.parent / "README.md").is_file()


def test_there_are_sweeps_for_the_levers():
    assert {path.parent.name for path in SWEEPS} >= {"depth", "taps", "block_size", "objective"}
