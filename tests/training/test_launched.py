"""Which of several processes this one is, before anything is distributed."""

from __future__ import annotations

import pytest

from dflash.training.launched import launched

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_JOB_NAME": "train",
}
LIGHTNING = {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}  # of the processes it starts itself


@pytest.mark.parametrize(
    ("variables", "expected"), [(TORCHRUN, (3, 8)), (SLURM, (2, 4)), (LIGHTNING, (0, 1)), ({}, (0, 1))]
)
def test_the_launcher_says_so(monkeypatch, variables, expected):
    for name in {**TORCHRUN, **SLURM, **LIGHTNING}:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


def test_tasks_that_lightning_cannot_follow(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ValueError, match="--ntasks-per-node=4"):
        launched()
