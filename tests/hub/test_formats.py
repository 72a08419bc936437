"""Every format holds every draft exactly; each key and each tensor name is the one its readers ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from spoil import FACTS, ROPES, SHAPE, SHAPES, make_bundle
from toys import plain_batch, random_prompts, tiny_draft, tiny_target
from transformers import AutoConfig, Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from dflash.blocks import make_blocks
from dflash.draft.draft import Draft
from dflash.draft.layout import alternating_layout
from dflash.draft.mask import block_geometry
from dflash.draft.rope import Rotary
from dflash.hub.bundle import SHARED, Bundle, TargetFacts
from dflash.hub.convert import from_folder_form, read_folder, to_folder_form, write_folder
from dflash.hub.folder import format_named, read_config
from dflash.hub.tensors import tensor_shapes

BODY = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "hidden_act", "rms_norm_eps", "attention_bias", "rope_theta", "rope_scaling", "rope_parameters"),
    *("max_position_embeddings", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers"),
    *("sliding_window_convention", "num_target_layers", "vocab_size", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "dtype"),
}
GPT_OSS_20B = replace(  # the published draft's dimensions
    SHAPE,
    hidden_size=2880,
    intermediate_size=7680,
    depth=8,
    num_heads=64,
    num_kv_heads=8,
    head_dim=64,
    num_target_layers=24,
    taps=(1, 6, 11, 16, 21),
    layout=(None,) * 8,
    block_size=8,
    mask_token_id=200000,
)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_round_trip_is_bit_exact(form, kind, dtype, tmp_path):
    bundle = make_bundle(SHAPES[kind], dtype=dtype)
    write_folder(tmp_path / "folder", form, bundle, card="# card\n")
    assert read_config(tmp_path / "folder")[0].name == form.name
    back = read_folder(tmp_path / "folder")
    assert back.shape == bundle.shape and back.notes == ()
    assert back.weights.keys() == bundle.weights.keys()
    for name, weight in bundle.weights.items():
        assert back.weights[name].dtype == dtype and torch.equal(back.weights[name], weight)
    assert back.shared.keys() == set(form.shared)
    assert all(torch.equal(back.shared[name], bundle.shared[name]) for name in form.shared)
    kept = (FACTS.vocab_size, FACTS.bos_token_id, FACTS.eos_token_id)
    assert (back.facts.vocab_size, back.facts.bos_token_id, back.facts.eos_token_id) == kept
    assert not any(file.name.endswith(".part") for file in tmp_path.iterdir())


@pytest.mark.parametrize("kind", SHAPES)
def test_dictionaries_convert_without_a_disk(form, kind):
    bundle = make_bundle(SHAPES[kind])
    config, tensors = to_folder_form(form, bundle)
    back = from_folder_form(form, config, tensors)
    assert back.shape == bundle.shape and back.weights.keys() == bundle.weights.keys()
    assert all(back.weights[name] is weight for name, weight in bundle.weights.items())


@pytest.mark.parametrize("kind", SHAPES)
def test_tensor_names_and_shapes_are_the_drafts_own(kind):
    own = {name: tuple(value.shape) for name, value in Draft(SHAPES[kind]).state_dict().items()}
    assert tensor_shapes(SHAPES[kind]) == own


def test_the_published_drafts_have_58_and_123_tensors():
    without = replace(SHAPE, depth=5, layout=(None,) * 5, attention_bias=False)
    assert len(tensor_shapes(without)) == 58
    sizes = tensor_shapes(GPT_OSS_20B)
    assert len(sizes) == 123
    assert sizes["fc.weight"] == (2880, 14400) and sizes["layers.7.self_attn.o_proj.weight"] == (2880, 4096)
    assert sizes["layers.0.self_attn.k_proj.bias"] == (512,)


def test_every_key_of_a_dflash_draft_model_folder():
    form = format_named("zlab")
    config = form.to_config(GPT_OSS_20B, replace(FACTS, vocab_size=201088), dtype="bfloat16")
    own = {"architectures", "model_type", "block_size", "is_causal", "dflash_config"}
    assert config.keys() == own | BODY
    assert config == config | {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "block_size": 8,
        "is_causal": False,
        "dflash_config": {
            "block_size": 8,
            "causal": False,
            "mask_token_id": 200000,
            "target_layer_ids": [1, 6, 11, 16, 21],
        },
        "num_target_layers": 24,
        "num_hidden_layers": 8,
        "layer_types": ["full_attention"] * 8,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 8,
        "hidden_size": 2880,
        "intermediate_size": 7680,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": {key: value for key, value in ROPES["yarn"].items() if key != "rope_theta"},
        "rope_parameters": ROPES["yarn"],
        "attention_bias": True,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "vocab_size": 201088,
        "max_position_embeddings": 2048,
        "dtype": "bfloat16",
        "bos_token_id": 60,
        "eos_token_id": [62, 63],
        "sliding_window_convention": "slot",
    }
    assert "auto_map" not in config  # nobody is asked to run code


def test_no_server_finds_a_tensor_it_does_not_know(write):
    names = set(load_file(write("zlab") / "model.safetensors"))
    layer = {f"self_attn.{p}_proj.{kind}" for p in "qkvo" for kind in ("weight", "bias")}
    layer |= {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}
    layer |= {f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")}
    layer |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
    outside = {"fc.weight", "hidden_norm.weight", "norm.weight"}
    assert names == outside | {f"layers.{i}.{name}" for i in range(2) for name in layer}
    assert set(load_file(write("speculators") / "model.safetensors")) == names | set(SHARED)


def test_every_key_of_a_speculators_folder():
    config = format_named("speculators").to_config(SHAPE, FACTS, dtype="float32")
    inner = config.pop("transformer_layer_config")
    assert inner.keys() == BODY | {"model_type"} and inner["model_type"] == "qwen3"
    assert config == {
        "speculators_model_type": "dflash",
        "architectures": ["DFlashSpeculator"],
        "aux_hidden_state_layer_ids": [2, 5],  # taps 1 and 4
        "block_size": 4,
        "draft_vocab_size": 64,
        "dtype": "float32",
        "mask_token_id": 61,
        "sample_from_anchor": False,
        "sliding_window_non_causal": True,
        "tie_word_embeddings": False,
        "speculators_config": {
            "algorithm": "dflash",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": "somebody/target", "architectures": ["GptOssForCausalLM"]},
        },
    }


@torch.no_grad()
def test_ids_of_each_format_find_the_tapped_states_in_transformers():
    """The off-by-one, held against the library whose ``hidden_states`` it counts in."""
    target = tiny_target("gpt_oss")
    shape = tiny_draft(target, taps=(0, 2)).shape
    facts = TargetFacts(target.dims.vocab_size)
    ids = torch.tensor(random_prompts((9,)))
    taps = target.features(plain_batch(ids), shape.taps).taps_BSTH
    states = target.model(input_ids=ids, output_hidden_states=True).hidden_states
    indices = format_named("speculators").to_config(shape, facts, dtype="float32")["aux_hidden_state_layer_ids"]
    layers = format_named("zlab").to_config(shape, facts, dtype="float32")["dflash_config"]["target_layer_ids"]
    for at, (index, layer) in enumerate(zip(indices, layers, strict=True)):
        torch.testing.assert_close(states[index], taps[:, :, at])
        torch.testing.assert_close(states[layer + 1], taps[:, :, at])
        assert not torch.allclose(states[index - 1], taps[:, :, at])


@torch.no_grad()
def test_an_imported_draft_computes_the_same_hidden_states(form, tmp_path):
    target = tiny_target("gpt_oss")
    draft = tiny_draft(target, layout=alternating_layout(window=5), block_size=4)
    weight = target.lm_head.weight
    shared = {SHARED[0]: target.embed(torch.arange(len(weight))), SHARED[1]: weight.detach()}
    bundle = Bundle(draft.shape, TargetFacts(target.dims.vocab_size), draft.state_dict(), shared)
    write_folder(tmp_path / "folder", form, bundle, card="")
    back = read_folder(tmp_path / "folder")
    again = Draft(back.shape).eval()
    again.load_state_dict(back.weights)
    ids = torch.randint(0, 60, (1, 30), generator=torch.Generator().manual_seed(1))
    batch, anchors = plain_batch(ids), torch.arange(4, 24, 3)[None]
    blocks = make_blocks(batch, anchors, torch.ones_like(anchors, dtype=torch.bool), block_size=4, mask_token_id=63)
    inputs = target.embed(blocks.input_ids_BAK), target.features(batch, draft.shape.taps).taps_BSTH
    geometry = block_geometry(batch, blocks)
    assert torch.equal(draft(*inputs, geometry), again(*inputs, geometry))


@pytest.mark.parametrize("rope", ROPES)
def test_servers_turn_positions_as_the_draft_does(rope, tmp_path):
    """What vLLM and SGLang read is transformers' Qwen3Config; its rotary frequencies must be the draft's."""
    shape = replace(SHAPE, rope_parameters=ROPES[rope])
    write_folder(tmp_path / "folder", format_named("zlab"), make_bundle(shape), card="")
    config = AutoConfig.from_pretrained(tmp_path / "folder")
    assert isinstance(config, Qwen3Config)
    assert (config.head_dim, config.layer_types, config.sliding_window) == (6, ["full_attention"] * 2, None)
    assert config.rope_parameters == ROPES[rope] and config.is_causal is False
    theirs, ours = Qwen3RotaryEmbedding(config), Rotary(ROPES[rope], head_dim=6)
    torch.testing.assert_close(theirs.inv_freq, ours.frequencies)
    assert theirs.attention_scaling == pytest.approx(ours.scale)


def test_windows_are_written_down_and_warned_about():
    shape = SHAPES["sliding and full"]
    for name in ("zlab", "transformers"):
        config = format_named(name).to_config(shape, FACTS, dtype="float32")
        assert config["layer_types"] == ["sliding_attention", "full_attention"] and config["sliding_window"] == 9
        assert config["is_causal"] is False and config["sliding_window_convention"] == "slot"
    speculators = format_named("speculators").to_config(shape, FACTS, dtype="float32")
    assert speculators["sliding_window_non_causal"] is True
    assert speculators["transformer_layer_config"]["sliding_window_convention"] == "slot"
    assert "SGLang" in format_named("zlab").warnings(shape)[0] and format_named("zlab").warnings(SHAPE) == []
    assert "window" in format_named("speculators").warnings(shape)[0]


def test_what_a_format_cannot_hold_is_refused(form):
    two = replace(SHAPE, layout=(4, 8))
    with pytest.raises(ValueError, match=r"one sliding window, not \[4, 8\]"):
        form.to_config(two, FACTS, dtype="float32")


def test_a_format_that_carries_the_targets_matrices_asks_for_them():
    with pytest.raises(ValueError, match=r"embed_tokens.weight, lm_head.weight; give --target"):
        to_folder_form(format_named("speculators"), replace(make_bundle(), shared={}))


def test_a_folder_that_is_there_stays(write):
    folder = write("zlab")
    before = (folder / "config.json").read_text()
    with pytest.raises(ValueError, match="not an empty folder"):
        write_folder(folder, format_named("zlab"), make_bundle(seed=1), card="")
    assert (folder / "config.json").read_text() == before
