"""How a run is computed: chosen by name, refused with a sentence where it is not possible, told when it starts."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from dflash.assemble.parts import build_parts
from dflash.assemble.train import make_module, train_parts
from dflash.assemble.used import announce_used

SHARDS = "trainer.strategy"


def findings(settings, *overrides: str) -> list[str]:
    with pytest.raises(ValueError, match="wrong with the configuration") as caught:
        settings(*overrides)
    return [line.removeprefix("  * ") for line in str(caught.value).splitlines()[1:]]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer=cpu"], "Windowed"),
        (["trainer=h100"], "Flex"),
        (["trainer=h100x8_fsdp"], "Flex"),
        (["trainer=h100", "attention=two_pieces"], "TwoPiece"),
        (["experiment=gpt_oss_20b"], "Flex"),
        (["experiment=gpt_oss_20b", "attention=dense"], "Dense"),
    ],
)
def test_attention_is_the_trainers_choice_and_the_users(overrides, expected, settings):
    assert settings(*overrides)["attention"] == {"_target_": f"dflash.draft.attention.{expected}"}


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (["attention._target_=dflash.draft.attention.Flex"], "attention=flex with device=cpu", "attention=two_pieces"),
        (["compile=fast"], "compile=fast", "choose one of inductor"),
        (["trainer=cpu_fsdp", f"{SHARDS}.data_parallel_size=4"], f"{SHARDS}.data_parallel_size=4", "_size=2"),
        (["trainer=h100x8_fsdp", "trainer.devices=4"], f"{SHARDS}.data_parallel_size=8", "_size=4"),
        (["trainer=cpu_fsdp", f"{SHARDS}.tensor_parallel_size=2"], f"{SHARDS}.tensor_parallel_size=2", "must be 1"),
        (["trainer=cpu_fsdp", f"{SHARDS}.save_distributed_checkpoint=true"], f"{SHARDS}.save", "must be false"),
        (["trainer=cpu_fsdp", "compile=eager"], "compile=eager", "not under FSDP2"),
        (["experiment=tiny_target", "compile=eager"], "compile=eager", "concerns drafts"),
        (["experiment=tiny_target", "trainer=cpu_ddp"], "trainer.devices=2", "on one device"),
        (["trainer=cpu_fsdp", "callbacks=ema"], "callbacks.average", "not under FSDP2"),
        (["trainer=cpu_fsdp", "heads=markov"], "draft.head: ", "heads=none"),
    ],
)
def test_what_is_not_possible_has_its_sentence(overrides, key, words, settings):
    found = findings(settings, *overrides)
    assert len(found) == 1, found
    assert found[0].startswith(key) and words in found[0]


def test_code_generation_needs_a_compiler(settings, monkeypatch):
    assert settings("compile=inductor")["compile"] == "inductor"  # the suite's machine has one, as torch needs it
    monkeypatch.setattr("dflash.check_trainer.shutil.which", lambda name: None)
    (found,) = findings(settings, "compile=inductor")
    assert found.startswith("compile=inductor with device=cpu: needs a C++ compiler") and "leave compile out" in found
    assert settings("compile=inductor", "trainer=gpu")["compile"] == "inductor"


def test_a_run_is_made_and_told_as_it_was_asked_for(settings, tmp_path):
    plain = settings("target=random_gpt_oss", "compile=eager", "activation_checkpointing=true")
    parts = train_parts(plain)
    loaded = parts["target"]()
    module = make_module(plain, parts, loaded)
    draft = module.draft
    assert draft.checkpoint_layers and draft._compiled_call_impl is not None
    assert all(torch._dynamo.OptimizedModule is not type(module) for module in draft.modules())
    trainer = build_parts(plain, {"trainer": None})["trainer"](logger=False, default_root_dir=tmp_path)
    text = io.StringIO()
    told = announce_used(plain, loaded, module, trainer, Console(file=text, width=200))
    assert told["draft"].startswith("attention Windowed()") and "compiled by eager" in told["draft"]
    assert "computed again" in told["draft"] and told["strategy"] == "SingleDeviceStrategy on 1 x CPUAccelerator"
    assert told["precision"] == "32-true; draft weights float32; matmul medium" and "attention eager" in told["target"]
    assert told["optimizer"] in text.getvalue()
