"""Jobs on a cluster: the Slurm launcher and the trainers of several ranks compose, and say what they need."""

from __future__ import annotations

import sys

import hydra
import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf

from dflash.assemble.parts import build_parts
from dflash.compose import launch

# Of submitit's Slurm launcher 1.2: what it takes, all of it.
SUBMITIT = {
    "submitit_folder", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name",
    "stderr_to_stdout", "partition", "qos", "comment", "constraint", "exclude", "gres", "cpus_per_gpu", "gpus_per_task",
    "mem_per_gpu", "mem_per_cpu", "account", "signal_delay_s", "max_num_timeout", "additional_parameters",
    "array_parallelism", "setup",
}  # fmt: skip


def launcher(script: str, *overrides: str) -> dict:
    every = ["hydra/launcher=slurm", *overrides]
    config = hydra.compose(script, overrides=every, return_hydra_config=True)
    config.hydra.sweep.dir = "sweep"  # the running job's own name the real one
    return OmegaConf.to_container(config.hydra.launcher, resolve=True)


@pytest.mark.parametrize(("trainer", "devices"), [("h100", 1), ("h100x8", 8), ("h100x8_fsdp", 8)])
def test_slurm_starts_one_task_a_device(trainer, devices, hydra_ready):
    found = launcher("train", f"trainer={trainer}", "name=study", "hydra.launcher.partition=gpu")
    assert set(found) - {"_target_"} == SUBMITIT
    assert (found["tasks_per_node"], found["gpus_per_node"], found["nodes"]) == (devices, devices, 1)
    assert (found["name"], found["partition"]) == ("study", "gpu")


def test_evaluations_go_to_slurm_too(hydra_ready):
    assert launcher("evaluate")["tasks_per_node"] == 1


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(monkeypatch, capsys):
    def main():
        raise RuntimeError("Unknown plugin class : 'hydra_plugins.hydra_submitit_launcher.SlurmLauncher'")

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "hydra/launcher=slurm"])
    assert launch(main, config_name="train") == 1
    assert "pip install 'dflash-lab[submitit]'" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", ["cpu_ddp", "cpu_fsdp"])
def test_torchrun_finds_the_ranks_that_a_trainer_is_made_for(trainer, settings, monkeypatch, tmp_path):
    """Under torchrun's variables Lightning takes rank and world from them, and starts no process of its own."""
    values = {"RANK": 1, "LOCAL_RANK": 1, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1, "TORCHELASTIC_RUN_ID": "test"}
    for key, value in values.items():
        monkeypatch.setenv(key, str(value))
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # set to 1 below, for the whole process, until this test is over
    factory = build_parts(settings(f"trainer={trainer}", "target=random_gpt_oss"), {"trainer": None})["trainer"]
    made = factory(max_steps=1, logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    assert made.strategy.cluster_environment.creates_processes_externally
    assert (made.world_size, made.global_rank) == (2, 1)
