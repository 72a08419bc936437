"""Sweep files of experiments/: every value of every parameter composes and passes the checks."""

from __future__ import annotations

import pytest
import yaml

from dflash.compose.keys import CONF
from dflash.compose.sweep import findings_of_jobs

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


def test_all_jobs_of_a_sweep_are_checked_together(hydra_ready):
    found = findings_of_jobs("train", ["block_size=4,1", "taps=early,explicit", "steps=5"])
    assert found == [
        "draft.taps.layers: has no value; give draft.taps.layers=... (jobs 1, 3 of 0 to 3)",
        "block_size=1: a block of one token leaves nothing to predict; give at least 2, such as block_size=8 "
        "(jobs 2, 3 of 0 to 3)",
    ]
    assert findings_of_jobs("train", ["block_size=4,8", "stps=5"]) == [
        "stps=5: there is no key stps; did you mean steps? (every job)"
    ]
    assert findings_of_jobs("train", ["block_size=4,8", "draft=depth1,depth2"]) == []


def test_a_sweep_with_a_wrong_job_starts_none(tmp_path, script):
    done = script("train.py", "-m", "target=random_llama", "steps=2,0", f"paths.outputs={tmp_path}")
    assert done.returncode == 1 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr == (
        "The sweep was not started. One thing is wrong with the configuration:\n"
        "  * steps=0: must be a number of at least 1; try steps=1000 (job 1 of 0 to 1)\n"
    )
