"""Every option of every group composes, passes the checks, binds to the signatures it feeds, and builds."""

from __future__ import annotations

import inspect
import string
from collections.abc import Iterator, Mapping

import pytest
import yaml
from hydra.utils import get_object

from dflash.assemble.train import train_parts
from dflash.check import PRETRAIN
from dflash.compose.keys import CONF
from dflash.target.families import FAMILIES

# What assembly hands to partial factories when it calls them: (positional arguments, names).
CALLS = {
    "task": (2, ()),
    "task.architecture": (0, ("vocab_size", "eos_token_id", "pad_token_id")),
    "draft": (1, ("block_size", "mask_token_id")),
    "anchors": (1, ("block_size",)),
    "data.prompts": (0, ("tokenizer",)),
    "prompts": (0, ("tokenizer",)),
    "validation": (0, ("tokenizer",)),
    "optimizer": (1, ()),
    "schedule": (1, ()),
    "trainer": (0, ("max_steps", "callbacks", "logger", "default_root_dir", "limit_val_batches")),
    "callbacks.acceptance": (2, ()),
    "callbacks.checkpoints": (0, ("folder",)),
    "logger.csv": (0, ("save_dir",)),
    "logger.wandb": (0, ("save_dir",)),
    "logger.tensorboard": (0, ("save_dir",)),
}
RESERVED = ("_target_", "_partial_")
NOT_TRAINING = ("target=from_checkpoint", "hydra=evaluate", "engine=local", "engine=server")


COMPANIONS = {"draft=eagle": ["heads=none", "mixing=bidirectional"]}  # what an option refuses to go without


def options() -> list[str]:
    found = [f"{path.parent.name}={path.stem}" for path in sorted(CONF.glob("*/*.yaml"))]
    return [option for option in found if option not in NOT_TRAINING]


def nodes(value, key: str = "") -> Iterator[tuple[str, Mapping]]:
    """(dotted key, node) of everything that has a _target_."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, Mapping) and "_target_" in value:
        yield key, value
    for name, inner in items:
        yield from nodes(inner, f"{key}.{name}".lstrip("."))


def bind(key: str, node: Mapping) -> None:
    positional, names = CALLS[key] if node.get("_partial_") else (0, ())
    keywords = {name: value for name, value in node.items() if name not in RESERVED}
    doubled = set(keywords) & set(names)
    assert not doubled, f"{key}: assembly sets {doubled} itself"
    signature = inspect.signature(get_object(node["_target_"]))
    signature.bind(*[None] * positional, **keywords, **dict.fromkeys(names))


@pytest.mark.parametrize("option", options())
def test_option_composes_binds_and_builds(option, settings):
    plain = settings(option, *COMPANIONS.get(option, []))
    for key, node in nodes(plain):
        bind(key, node)
    if plain["task"]["_target_"] != PRETRAIN:
        parts = train_parts(plain)
        assert parts["objective"].terms and callable(parts["target"])


def test_several_options_together(settings):
    plain = settings(
        "draft=depth8", "taps=late", "layout=alternating", "objective=kl", "optimizer=muon", "trainer=h100"
    )
    assert (plain["draft"]["depth"], plain["device"], plain["objective"]["chunk_blocks"]) == (8, "cuda", 256)
    assert plain["draft"]["taps"] == {"_target_": "dflash.draft.taps.late_taps", "count": 2}


@pytest.mark.parametrize("target", ["gpt_oss_20b", "qwen3_8b"])
def test_hub_targets_pass_the_check_without_a_hub(target, settings):
    plain = settings(f"target={target}", "draft=depth8", "trainer=h100", "data.length=4096", "block_size=16")
    assert plain["target"]["device"] == "cuda"


def test_flagship_is_the_published_shape(settings):
    plain = settings("experiment=gpt_oss_20b")
    assert plain["draft"]["taps"]["layers"] == [1, 6, 11, 16, 21]
    assert round(plain["draft"]["mlp_ratio"] * 2880) == 7680
    assert (plain["steps"], plain["data"]["length"], plain["block_size"], plain["eval_every"]) == (10_000, 4096, 8, 250)
    assert (plain["target"]["mask_token_id"], plain["draft"]["depth"]) == (200_000, 8)


def test_experiment_wins_over_primary_and_command_line_wins_over_both(settings):
    assert settings("experiment=smoke")["steps"] == 20
    assert settings("experiment=smoke", "steps=7")["steps"] == 7
    assert settings("trainer=debug")["steps"] == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_known_dims_of_random_targets_are_theirs(family, settings):
    from dflash.assemble.parts import build_parts

    plain = settings(f"target=random_{family}", "target.vocab_size=300")
    dims = build_parts(plain, {"target": None})["target"]().target.dims
    told = {key: value for key, value in plain["target_facts"]["dims"].items() if key != "stop_token_ids"}
    assert told | {"rope_parameters": None} == {**vars(dims), "rope_parameters": None}


@pytest.mark.parametrize(
    "option", ["decoding=long", "verify=rejection", "verify=ddtree", "decoding=sampled", "prompts=file", "prompts=hub"]
)
def test_evaluate_takes_its_target_from_the_run(option, evaluation):
    plain = evaluation(option, "block_size=4")
    assert plain["target"]["dtype"] == "bfloat16"  # nothing of evaluate.py's own says so
    for key, node in nodes(plain):
        bind(key, node)


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_help_fills_in(script):
    """Hydra substitutes into the template; a stray dollar sign would break --help."""
    template = yaml.safe_load((CONF / "hydra" / f"{script}.yaml").read_text())["help"]["template"]
    text = string.Template(template).substitute(APP_CONFIG_GROUPS="GROUPS", FLAGS_HELP="", CONFIG="")
    assert "GROUPS" in text and f'eval "$(python {script}.py -sc install=bash)"' in text
