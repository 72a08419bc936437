"""Composing and checking in-process, without the committed target's weights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
import pytest

from dflash.compose import check, register, write_config
from dflash.compose.keys import CONF
from dflash.target.families import gpt_oss_config, qwen3_config

# What options need besides their own name.
NEEDS = {
    "attention=flex": ["trainer=gpu"],
    "target=local": ["target.path=assets/tiny_gpt_oss"],
    "taps=explicit": ["draft.taps.layers=[1,3]"],
    "data=file": ["data.path=assets/prompts/held_out.jsonl"],
    "data=hub": ["data.path=owner/name"],
    "data=mixture": [
        "+data.sources.mine={_target_:dflash.data.mixture.FileSource,path:assets/prompts/held_out.jsonl,weight:2}"
    ],
    "data=regenerated_hub": ["data.prompts.path=owner/name"],
    "prompts=file": ["prompts.path=assets/prompts/held_out.jsonl"],
    "prompts=hub": ["prompts.path=owner/name"],
}


@pytest.fixture(scope="session")
def needs() -> dict[str, list[str]]:
    return NEEDS


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory) -> Iterator[Path]:
    """A working directory as checks see the repository: of the embedded target and of the second one that studies
    train, config.json without weights."""
    path, before = tmp_path_factory.mktemp("place"), Path.cwd()
    gpt_oss_config(vocab_size=4096, eos_token_id=4089, pad_token_id=4087).save_pretrained(path / "assets/tiny_gpt_oss")
    qwen3_config(vocab_size=4096, eos_token_id=4089, pad_token_id=4087).save_pretrained(
        path / "outputs/targets/tiny_qwen3"
    )
    (path / "assets/prompts").symlink_to(CONF.parent / "assets/prompts")
    os.chdir(path)
    yield path
    os.chdir(before)


@pytest.fixture(scope="module")
def hydra_ready() -> Iterator[None]:
    register()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


@pytest.fixture(scope="module")
def settings(hydra_ready) -> Callable[..., dict]:
    """Checked plain settings of train.py with these overrides and those that they need."""

    def run(*overrides: str) -> dict:
        every = [need for given in overrides for need in NEEDS.get(given, [])] + list(overrides)
        return check(hydra.compose("train", overrides=every), config_name="train", overrides=every)

    return run


@pytest.fixture(scope="module")
def run_folder(settings, tmp_path_factory) -> str:
    """A run folder with a configuration and an (unreadable) checkpoint."""
    path = tmp_path_factory.mktemp("run")
    write_config(settings("target=local", "target.dtype=bfloat16"), path / "config.yaml")
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "last.ckpt").write_bytes(b"")
    return str(path)


@pytest.fixture(scope="module")
def evaluation(hydra_ready, run_folder) -> Callable[..., dict]:
    """Checked plain settings of evaluate.py."""

    def run(*overrides: str) -> dict:
        needed = [need for given in overrides for need in NEEDS.get(given, [])]
        every = [f"checkpoint={run_folder}", *needed, *overrides]
        return check(hydra.compose("evaluate", overrides=every), config_name="evaluate", overrides=every)

    return run


@pytest.fixture(scope="session")
def script() -> Callable[..., subprocess.CompletedProcess]:
    """A script of the repository with these arguments, as a user starts it."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
        return subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=CONF.parent, check=False
        )

    return run
