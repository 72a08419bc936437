"""Settings of python -m dflash.data regenerate: every engine and every data option composes, binds and builds."""

from __future__ import annotations

import hydra
import pytest
from test_options import bind, nodes

from dflash.assemble.data import DataRecipe
from dflash.assemble.parts import build_parts
from dflash.compose import check
from dflash.compose.keys import CONF
from dflash.compose.launch import composition_findings

ENGINE_NEEDS = {"engine=server": ["engine.url=http://localhost:8000/v1"]}
OPTIONS = [f"{group}={path.stem}" for group in ("engine", "data") for path in sorted(CONF.glob(f"{group}/*.yaml"))]


@pytest.fixture
def regeneration(hydra_ready, needs):
    def run(*overrides: str) -> dict:
        given = ["out=somewhere", *overrides]
        if not any(override.startswith("data=") for override in overrides):
            given.append("data=file")
        every = [need for override in given for need in (needs | ENGINE_NEEDS).get(override, [])] + given
        return check(hydra.compose("regenerate", overrides=every), config_name="regenerate", overrides=every)

    return run


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_binds_and_builds(option, regeneration):
    plain = regeneration(option)
    for key, node in nodes(plain):
        bind(key, node)
    parts = build_parts(plain, {"target": None, "data": DataRecipe, "engine": object})
    assert callable(parts["engine"].open)


def findings(regeneration, *overrides: str) -> list[str]:
    with pytest.raises(ValueError, match="wrong with the configuration") as caught:
        regeneration(*overrides)
    return [line.removeprefix("  * ") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["max_new_tokens=0"], "max_new_tokens=0", "at least 1"),
        (["max_new_tokens=20000"], "max_new_tokens=20000", "positions of the target"),
        (["temperature=-1"], "temperature=-1", "at least 0"),
        (["shard_size=0"], "shard_size=0", "at least 1"),
        (["engine.draft=nowhere"], "engine.draft=nowhere", "does not exist"),
        (["engine=server", "engine.concurrency=0"], "engine.concurrency=0", "at least 1"),
        (["engine=server", "engine.backoff.attempts=0"], "engine.backoff.attempts=0", "at least 1"),
    ],
)
def test_each_mistake_has_its_sentence(overrides, key, words, regeneration):
    found = findings(regeneration, *overrides)
    assert len(found) == 1, found
    assert found[0].startswith(key) and words in found[0]


SHARED_OUT = ["data=ultrachat", "data.num_workers=2", "data.batch_size=1"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*SHARED_OUT, "data.lanes=3"], "data.lanes=3: must be a multiple of devices x data.num_workers = 2"),
        ([*SHARED_OUT, "data.lanes=2", "trainer=h100x8"], "= 16, so that no two processes"),
        (["data=file", "data.lanes=2"], "data.lanes=2: only a streamed source is shared out"),
        (
            ["data=mixture", "+data.sources.other={_target_:dflash.data.mixture.FileSource,path:nowhere}"],
            "data.sources.other.path=nowhere: does not exist",
        ),
    ],
)
def test_data_that_cannot_be_read_is_told_before_training(overrides, words, settings):
    with pytest.raises(ValueError, match="wrong with the configuration") as caught:
        settings(*overrides)
    assert words in str(caught.value)


def test_lanes_for_all_processes_pass(settings):
    assert settings(*SHARED_OUT, "data.lanes=16", "trainer=h100x8")["data"]["lanes"] == 16


def test_an_option_of_another_script_is_not_taken_for_a_typing_error(hydra_ready):
    (found,) = composition_findings("train", ["engine=server"])
    assert found.startswith("engine=server: Could not override 'engine'")
