"""A toy study in a folder of its own, over a small corpus, so that whole studies run in seconds."""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from toy_study import README, TOY

from dflash.data.corpus import is_held_out
from dflash.study.definition import EXPERIMENTS, Study, read_study


@pytest.fixture(scope="module", autouse=True)
def at_the_root() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(EXPERIMENTS.parent)
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """Four files of the standard library."""
    folder = tmp_path_factory.mktemp("library")
    root = Path(inspect.getfile(json)).parent.parent
    names = sorted(path.name for path in root.glob("*.py") if 2_000 < path.stat().st_size < 20_000)
    for name in [n for n in names if not is_held_out(n)][:4]:
        shutil.copy(root / name, folder / name)
    return folder


def write(root: Path, values) -> Path:
    """``root``, with ``values`` as its study ``toy``."""
    folder = root / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(EXPERIMENTS / "common.yaml", root)
    (folder / "study.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "README.md").write_text(README)
    return root


@pytest.fixture
def write_study(tmp_path):
    """values -> the folder of experiments that holds them as the study ``toy``."""
    return lambda values: write(tmp_path / "experiments", values)


@pytest.fixture(scope="module")
def small_corpus(library) -> list[str]:
    """Overrides that keep responses quick to write."""
    return [f"data.prompts.corpus_root={library}", f"paths.cache={library / 'cache'}"]


@pytest.fixture(scope="module")
def toy(small_corpus, tmp_path_factory) -> Study:
    """The toy study in its small form."""
    return read_study("toy", root=write(tmp_path_factory.mktemp("experiments"), TOY), small=True, extra=small_corpus)
