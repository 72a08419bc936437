"""A wrong folder: every key and every tensor at fault is named, all in one error, before a weight is read."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from spoil import ROPES, SHAPE, SHAPES, edit_config, edit_tensors, make_bundle

from dflash.hub.convert import read_folder
from dflash.hub.folder import examine, format_named, read_config
from dflash.hub.tensors import tensor_shapes

YARN_OLD = {key: value for key, value in ROPES["yarn"].items() if key not in ("rope_theta", "rope_type")}


def findings(folder) -> list[str]:
    """What the one error lists, without bullets."""
    with pytest.raises(ValueError) as caught:
        read_folder(folder)
    first, *rest = str(caught.value).splitlines()
    return [line.removeprefix("  * ") for line in rest] or [first.partition(": ")[2]]


def test_keys_and_tensors_are_all_told_at_once(write):
    folder = write("zlab")
    edit_config(folder, drop=("rms_norm_eps",), hidden_act="gelu", unheard_of=1, dflash_config={"selector_rank": 256})

    def change(tensors):
        del tensors["norm.weight"]
        tensors["lm_head.weight"] = torch.zeros(2, 2)
        tensors["layers.1.mlp.up_proj.weight"] = torch.zeros(3, 32)
        tensors["fc.weight"] = torch.zeros(32, 64, dtype=torch.int8)

    edit_tensors(folder, change)
    assert findings(folder) == [
        "hidden_act='gelu' is not supported; must be 'silu'",
        "rms_norm_eps is missing",
        "dflash_config.selector_rank is not a key this format has; delete it if it changes nothing in the draft",
        "unheard_of is not a key this format has; delete it if it changes nothing in the draft",
        "tensor norm.weight is missing; wanted [32]",
        "tensor lm_head.weight has no place in this draft",
        "tensor fc.weight is of type I8; wanted one of F32, BF16, F16",
        "tensor layers.1.mlp.up_proj.weight is [3, 32]; wanted [48, 32]",
    ]


@pytest.mark.parametrize(
    "key",
    [
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "vocab_size", "max_position_embeddings", "num_target_layers", "rms_norm_eps", "dflash_config"),
    ],
)
def test_every_missing_key_is_named(key, write):
    folder = write("zlab")
    edit_config(folder, drop=(key,))
    assert f"{key} is missing" in findings(folder)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("zlab", {"hidden_size": "32"}, "hidden_size='32' must be a whole number of at least 1"),
        ("zlab", {"num_attention_heads": 3}, "num_key_value_heads=2 does not divide num_attention_heads=3"),
        ("zlab", {"head_dim": 7}, "head_dim=7 must be even"),
        ("zlab", {"attention_bias": 1}, "attention_bias=1 must be true or false"),
        ("zlab", {"block_size": 5}, "block_size=5 and dflash_config.block_size=4 differ"),
        ("zlab", {"is_causal": True}, "is_causal=True is not supported"),
        ("zlab", {"dflash_config": {"causal": True}}, "dflash_config.causal=True is not supported"),
        ("zlab", {"dflash_config": {"use_swa": True}}, "dflash_config.use_swa=True"),
        ("zlab", {"dflash_config": {"projector_type": "domino"}}, "dflash_config.projector_type='domino'"),
        ("zlab", {"dflash_config": {"target_layer_ids": [1, 5]}}, "draft.taps=[1, 5]"),
        ("zlab", {"dflash_config": {"target_layer_ids": "1, 4"}}, "dflash_config.target_layer_ids='1, 4'"),
        ("zlab", {"dflash_config": {"mask_token_id": 64}}, "mask_token_id=64 must be below vocab_size=64"),
        ("zlab", {"layer_types": ["full_attention"]}, "layer_types=['full_attention'] must name"),
        ("zlab", {"layer_types": ["sliding_attention"] * 2}, "sliding_window is missing"),
        ("zlab", {"sliding_window_convention": "anchor"}, "sliding_window_convention='anchor' is not supported"),
        ("zlab", {"rope_parameters": {"factor": 16.0}}, "make them agree"),
        ("zlab", {"rope_theta": 10000.0}, "make them agree"),
        ("speculators", {"draft_vocab_size": 32}, "draft_vocab_size=32 is not supported; must be 64"),
        ("speculators", {"sample_from_anchor": True}, "sample_from_anchor=True"),
        ("speculators", {"target_hidden_size": 64}, "target_hidden_size=64"),
        ("speculators", {"markov_rank": 256}, "markov_rank is not a key"),
        ("transformers", {"is_causal": True}, "is_causal=True"),
        ("transformers", {"mask_token_id": -1}, "mask_token_id=-1 must be a whole number of at least 0"),
    ],
)
def test_each_unfit_value_has_its_sentence(name, changes, words, write):
    folder = write(name)
    edit_config(folder, **changes)
    assert any(words in finding for finding in findings(folder)), findings(folder)


def test_causal_sliding_layers_are_refused_and_unsaid_ones_noted(write):
    folder = write("zlab", make_bundle(SHAPES["all sliding"]))
    config = json.loads((folder / "config.json").read_text())
    del config["is_causal"], config["dflash_config"]["causal"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "bidirectionally" in examine(folder).notes[0] and read_folder(folder).shape == SHAPES["all sliding"]
    folder = write("speculators", make_bundle(SHAPES["all sliding"]))
    edit_config(folder, sliding_window_non_causal=False)
    assert findings(folder) == ["sliding_window_non_causal=false means causal blocks in sliding layers, which do not run here"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("old", ["rope_type", "type"])
def test_a_folder_with_only_the_old_rope_keys(old, write):
    folder = write("zlab")
    edit_config(folder, drop=("rope_parameters", "rope_scaling"))
    edit_config(folder, rope_scaling=YARN_OLD | {old: "yarn"})
    assert read_folder(folder).shape.rope_parameters == ROPES["yarn"]
    edit_config(folder, drop=("rope_scaling",))
    assert read_folder(folder).shape.rope_parameters == {"rope_type": "default", "rope_theta": 150000.0}
    edit_config(folder, drop=("rope_theta",))
    assert findings(folder) == ["rope_parameters.rope_theta is missing"]


def test_yarn_without_its_pretrained_length_is_read_as_transformers_reads_it(write):
    folder = write("zlab")
    edit_config(folder, drop=("rope_parameters", "rope_scaling"))
    edit_config(folder, rope_scaling={"type": "yarn", "factor": 2.0})
    assert read_folder(folder).shape.rope_parameters["original_max_position_embeddings"] == 2048


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "longrope", "rope_theta": 1e4}, "rope_type='longrope' is not supported"),
        ({"rope_type": "yarn", "rope_theta": 1e4}, "rope_parameters.factor is missing"),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"full_attention": {"rope_type": "default"}}, "rope_parameters.full_attention is not a key"),
        ([1], "rope_parameters=[1] must be a mapping"),
    ],
)
def test_ropes_that_the_draft_cannot_turn(rope, words, write):
    folder = write("zlab")
    edit_config(folder, drop=("rope_parameters", "rope_scaling", "rope_theta"))
    config = json.loads((folder / "config.json").read_text()) | {"rope_parameters": rope}
    (folder / "config.json").write_text(json.dumps(config))
    assert any(words in finding for finding in findings(folder)), findings(folder)


def test_folders_of_other_writers_are_read(write):
    """Keys that trainers and libraries leave, block_size and num_target_layers where newer folders keep them."""
    folder = write("zlab")
    drop = ("block_size", "num_target_layers", "is_causal", "layer_types", "sliding_window", "max_window_layers")
    edit_config(folder, drop=(*drop, "use_sliding_window", "sliding_window_convention", "rope_scaling", "rope_theta"))
    edit_config(
        folder,
        **{"transformers_version": "4.57.3", "torch_dtype": "bfloat16", "auto_map": {"AutoModel": "dflash.X"}},
        **{"use_cache": True, "initializer_range": 0.02, "attention_dropout": 0.0, "tie_word_embeddings": True},
        dflash_config={"num_target_layers": 6},
    )
    assert read_folder(folder).shape == SHAPE
    edit_config(folder, use_sliding_window=True, sliding_window=9, max_window_layers=1)  # Qwen3's rule of layers
    assert read_folder(folder).shape.layout == (None, 9)


def test_a_published_configuration():
    """The keys of the draft released for Qwen3-4B, as trainers of that time wrote them; and of DFlash 2's, refused."""
    config = {
        **{"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "auto_map": {"AutoModel": "dflash.X"}},
        **{"attention_bias": False, "attention_dropout": 0.0, "block_size": 16, "bos_token_id": 151643},
        **{"dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}, "dtype": "bfloat16"},
        **{"eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560},
        **{"initializer_range": 0.02, "intermediate_size": 9728, "layer_types": ["full_attention"] * 5},
        **{"max_position_embeddings": 40960, "max_window_layers": 5, "num_attention_heads": 32},
        **{"num_hidden_layers": 5, "num_key_value_heads": 8, "num_target_layers": 36, "rms_norm_eps": 1e-06},
        **{"rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True},
        **{"transformers_version": "4.57.3", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936},
    }
    known = format_named("zlab").from_config(config)
    assert known.findings == known.notes == ()
    shape = known.shape
    assert (shape.taps, shape.block_size, shape.mask_token_id) == ((1, 9, 17, 25, 33), 16, 151669)
    assert shape.rope_parameters == {"rope_type": "default", "rope_theta": 1000000} and shape.layout == (None,) * 5
    assert len(tensor_shapes(shape)) == 58
    second = config | {"dflash_config": config["dflash_config"] | {"conv_kernel_size": 2, "selector_top_k": 16}}
    assert [line.partition(" ")[0] for line in format_named("zlab").from_config(second).findings] == [
        *("dflash_config.conv_kernel_size", "dflash_config.selector_top_k")
    ]


def test_speculators_without_copies_and_without_the_targets_depth(write):
    folder = write("speculators")
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in ("embed_tokens.weight", "lm_head.weight")])
    config = json.loads((folder / "config.json").read_text())
    del config["transformer_layer_config"]["num_target_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    assert findings(folder) == ["transformer_layer_config.num_target_layers is missing"]
    assert read_folder(folder, num_target_layers=6).shape == SHAPE


def test_nothing_is_unpickled(write):
    folder = write("zlab")
    (folder / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('ran')",)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"no model.safetensors .* pytorch_model.bin would need pickle"):
        read_folder(folder)


def test_shards_are_read_and_an_index_cannot_leave_the_folder(write, tmp_path):
    folder, bundle = write("zlab"), make_bundle()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"
    names = dict.fromkeys(bundle.weights, "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": names}))
    back = read_folder(folder)
    assert all(torch.equal(back.weights[name], weight) for name, weight in bundle.weights.items())
    index.write_text(json.dumps({"weight_map": names | {"fc.weight": "../other.safetensors"}}))
    with pytest.raises(ValueError, match=r"names '\.\./other\.safetensors', which is no safetensors file beside it"):
        read_folder(folder)


@pytest.mark.parametrize("content", [b"", b"\x05\0\0\0\0\0\0\0{]", b"\xff" * 16, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_broken_file_is_one_sentence(content, write):
    folder = write("zlab")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is no safetensors file"):
        read_folder(folder)


@pytest.mark.parametrize("architecture", ["DFlash2DraftModel", "GptOssForCausalLM"])
def test_other_architectures_are_refused_by_name(architecture, write):
    folder = write("zlab")
    edit_config(folder, architectures=[architecture])
    with pytest.raises(ValueError, match=rf"\['{architecture}'\] is of no draft format known here"):
        read_config(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_config(folder)
