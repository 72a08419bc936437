"""Checkpoints stored in MXFP4: unpacked they are exactly the weights they stand for; packed only where it works."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import random_prompts, tiny_draft

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.target import quantized
from dflash.target.families import build_model, gpt_oss_config
from dflash.target.load import local_target, random_target
from dflash.target.used import weights_format

# E2M1: a sign, two bits of exponent, one of mantissa (OCP Microscaling Formats 1.0, section 5.3.3).
VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_layers": 6, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """blocks uint8 [E, out, in / 32, 16], the lower half of a byte first, scales uint8 [E, out, in / 32], powers of two
    -> [E, in, out], as the model multiplies."""
    pairs = torch.stack([blocks & 15, blocks >> 4], dim=-1).long()
    values = VALUES[pairs].flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
    return values.flatten(-2).transpose(1, 2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(folder as gpt-oss is published, the experts' weights it stands for)."""
    folder = tmp_path_factory.mktemp("mxfp4")
    torch.manual_seed(0)
    model = build_model(gpt_oss_config(vocab_size=300, num_experts=4, num_experts_per_token=2, **SIZES))
    model.to(torch.bfloat16).save_pretrained(folder)
    random_target(family="gpt_oss", vocab_size=300)().tokenizer.save_pretrained(folder)
    stored, expected = load_file(folder / "model.safetensors"), {}
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inside, out = stored.pop(name).shape
        blocks = torch.randint(0, 256, (experts, out, inside // 32, 16), dtype=torch.uint8)
        scales = torch.randint(119, 123, (experts, out, inside // 32), dtype=torch.uint8)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expected[name] = unpack(blocks, scales)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, expected


@pytest.mark.parametrize("weights", ["unpacked", "auto"])
def test_unpacked_weights_are_those_that_were_packed(packed, weights, caplog):
    folder, expected = packed
    target = local_target(path=str(folder), weights=weights)().target
    state = target.model.state_dict()
    assert len(expected) == 12
    assert all(torch.equal(state[name], weight) for name, weight in expected.items())
    assert re.fullmatch(r"float32 0\.00\d+ GiB", weights_format(target))
    told = [record.message for record in caplog.records if record.name == "dflash.target.quantized"]
    assert len(told) == (weights == "auto") and all("a CUDA GPU (target.device)" in line for line in told)


def test_an_unpacked_target_decodes_without_loss(packed):
    target = local_target(path=str(packed[0]))().target
    prompts = random_prompts((3, 11, 20))
    own, _ = AutoregressiveDecoder(target).generate(prompts, max_new_tokens=16)
    ours, _ = SpeculativeDecoder(target, tiny_draft(target)).generate(prompts, max_new_tokens=16)
    assert [trace.tokens for trace in ours] == [trace.tokens for trace in own]


def test_what_keeping_them_packed_lacks_is_named(packed):
    with pytest.raises(
        ValueError, match=r"target\.weights=mxfp4: it needs a CUDA GPU .*; supply that, or use .*unpack"
    ):
        local_target(path=str(packed[0]), weights="mxfp4")()


def test_with_all_it_needs_it_is_loaded_onto_its_device(packed, monkeypatch):
    monkeypatch.setattr(quantized, "missing_for_packed", lambda device: [])
    config = local_target(path=str(packed[0]))().target.model.config
    config.quantization_config = {"quant_method": "mxfp4"}
    for weights in ("mxfp4", "auto"):
        assert quantized.loading_options(config, weights, "cuda:0", name="x") == {"device_map": {"": "cuda:0"}}
    assert quantized.loading_options(config, "unpacked", "cuda:0", name="x")["quantization_config"].dequantize


def test_other_checkpoints_are_not_packed(tmp_path):
    loaded = random_target(family="gpt_oss", vocab_size=300)()
    loaded.target.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert local_target(path=str(tmp_path), weights="auto")().target.num_parameters == loaded.target.num_parameters
    with pytest.raises(ValueError, match=r"target\.weights=mxfp4: .* is not stored in MXFP4; use"):
        local_target(path=str(tmp_path), weights="mxfp4")()
    with pytest.raises(ValueError, match=r"target\.weights='fp4': choose one of unpacked, mxfp4, auto"):
        local_target(path=str(tmp_path), weights="fp4")
