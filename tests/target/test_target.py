"""The target: features are transformers' own, documents do not mix, what cannot be decoded is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from toys import TARGET_FAMILIES, packed_batch, plain_batch, tiny_target
from transformers import (
    Cohere2Config,
    FalconH1Config,
    JambaConfig,
    Llama4TextConfig,
    MambaConfig,
    MiniMaxConfig,
    PreTrainedConfig,
)

from dflash.target.families import FAMILIES, build_model
from dflash.target.target import Target
from dflash.types import TokenBatch

TAPS = (0, 1, 2)
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "pad_token_id": None}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_features_equal_the_plain_forward_of_transformers(family):
    target = tiny_target(family)
    ids = torch.randint(0, 64, (2, 60), generator=torch.Generator().manual_seed(1))
    features = target.features(plain_batch(ids), TAPS, with_last=True)
    with torch.no_grad():
        expected = target.model(input_ids=ids, output_hidden_states=True)
    for t, layer in enumerate(TAPS):
        torch.testing.assert_close(features.taps_BSTH[:, :, t], expected.hidden_states[layer + 1], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(features.last_BSH, expected.hidden_states[-1], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(target.logits(features.last_BSH), expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_packed_documents_equal_separate_documents(family):
    target = tiny_target(family)
    batch = packed_batch([[(5, 18), (3, 21)], [(4, 30)]], length=50)
    features = target.features(batch, TAPS, with_last=True)
    assert features.taps_BSTH.isfinite().all()
    for row, start, end in ((0, 0, 23), (0, 23, 47), (1, 0, 34)):
        alone = target.features(plain_batch(batch.ids_BS[row : row + 1, start:end]), TAPS, with_last=True)
        torch.testing.assert_close(features.taps_BSTH[row, start:end], alone.taps_BSTH[0], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(features.last_BSH[row, start:end], alone.last_BSH[0], atol=2e-5, rtol=1e-5)


def test_the_window_of_gpt_oss_is_obeyed():
    """The output of layer 0, which slides over 16 tokens, forgets a token that is 16 back."""
    target = tiny_target("gpt_oss")
    assert target.windows == (None, 16)
    ids = torch.randint(0, 64, (1, 40), generator=torch.Generator().manual_seed(2))
    other = ids.clone()
    other[0, 10] = (ids[0, 10] + 1) % 64
    first, second = (target.features(plain_batch(x), (0,)).taps_BSTH[0, :, 0] for x in (ids, other))
    changed = (first - second).abs().amax(-1) > 1e-6
    assert changed.nonzero()[:, 0].tolist() == list(range(10, 26))


def test_last_is_absent_unless_asked_for():
    target = tiny_target("qwen3")
    assert target.features(plain_batch(torch.zeros(1, 4, dtype=torch.long)), (1,)).last_BSH is None


def test_features_ignore_autocast():
    target = tiny_target("qwen3")
    batch = plain_batch(torch.arange(20)[None])
    plain = target.features(batch, TAPS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = target.features(batch, TAPS)
    assert cast.taps_BSTH.dtype == torch.float32
    assert torch.equal(plain.taps_BSTH, cast.taps_BSTH)


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_embeddings_are_those_the_first_layer_sees(family):
    """Gemma's, too, which are scaled."""
    target = tiny_target(family)
    ids = torch.arange(20)[None]
    assert torch.equal(target.embed(ids), target.model(input_ids=ids, output_hidden_states=True).hidden_states[0])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (FalconH1Config(**SMALL, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8), "layers of type hybrid keep"),
        (Llama4TextConfig(**SMALL), "layers of type chunked_attention keep what a session cannot roll back"),
        (MiniMaxConfig(**SMALL), "layers of type linear_attention cannot run over a session's cache"),
        (Cohere2Config(**SMALL), "logit_scale=0.0625 is not supported"),
        (MambaConfig(hidden_size=32, vocab_size=64, num_hidden_layers=2), "no max_position_embeddings, num_att"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_what_cannot_be_decoded_is_refused_in_a_sentence(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        Target(build_model(config), name="strange")


def test_a_recurrent_layer_that_forgets_its_state_is_refused_by_its_type():
    model = build_model(FAMILIES["qwen3_next"](64))
    forward = model.model.layers[0].linear_attn.forward
    model.model.layers[0].linear_attn.forward = lambda *args, cache_params, **rest: forward(*args, **rest)
    with pytest.raises(ValueError, match="layers of type linear_attention do not go on from a restored state"):
        Target(model, name="forgetful")


def test_a_family_that_forgets_when_several_tokens_come_at_once_is_refused():
    """Jamba: its scan over several tokens starts from nothing, though single steps and the convolution do not."""
    config = JambaConfig(
        **SMALL, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=4, use_mamba_kernels=False
    )
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        with pytest.raises(ValueError, match="layers of type linear_attention do not go on from a restored state"):
            Target(build_model(config).to(dtype), name="jamba")


def test_a_hybrid_packs_documents_into_passes_no_larger_than_the_batch():
    """One long document beside many short ones must not pad each of those to its length."""
    target = tiny_target("qwen3_next")
    batch = packed_batch([[(10, 80)], [(2, 4)] * 15], length=90)
    sizes = []
    handle = target.blocks[0].register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[:2])))
    features = target.features(batch, TAPS)
    handle.remove()
    assert sizes == [(2, 90), (14, 6)]
    assert (features.taps_BSTH[batch.documents_BS < 0] == 0).all()
    assert (features.taps_BSTH[batch.documents_BS >= 0].abs().amax((1, 2)) > 0).all()


def test_frozen_in_eval_mode_and_not_copied():
    target = tiny_target("llama")
    assert not target.model.training
    assert not any(parameter.requires_grad for parameter in target.model.parameters())
    assert copy.deepcopy({"target": target})["target"] is target


def test_logits_pass_gradients_to_hidden_states_only():
    target = tiny_target("qwen3")
    hidden = torch.randn(3, 32, requires_grad=True)
    target.logits(hidden).logsumexp(-1).sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert target.lm_head.weight.grad is None


def test_logits_of_some_slots_are_one_product_over_all_rows():
    """Not one a row over a copied lm_head, which takes four times as long."""
    target, hidden = tiny_target("gpt_oss"), torch.randn(4, 8, 32)
    with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        target.logits(hidden[:, 1:])
    names = {event.key for event in profile.key_averages()}
    assert "aten::mm" in names and "aten::bmm" not in names


@torch.no_grad()
def test_fingerprint_changes_with_one_weight_and_with_the_configuration():
    first = tiny_target("qwen3").fingerprint()
    assert tiny_target("qwen3").fingerprint() == first
    changed = tiny_target("qwen3")
    next(changed.model.parameters())[3, 3] += 1e-3
    assert changed.fingerprint() != first
    other = tiny_target("qwen3")
    other.config.rms_norm_eps = 1e-5
    assert other.fingerprint() != first


def test_dims():
    dims = tiny_target("gpt_oss").dims
    assert (dims.hidden_size, dims.num_layers, dims.num_heads, dims.num_kv_heads, dims.head_dim) == (32, 4, 4, 2, 8)
    assert dims.attention_bias
    assert dims.rope_parameters["rope_type"] == "yarn"
    gemma = tiny_target("gemma3").dims  # the full layers' base, of two
    assert gemma.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    llama = tiny_target("llama").dims
    assert (llama.head_dim, llama.attention_bias) == (8, False)  # 32 / 4: Llama's configuration need not say


def test_padding_stays_finite():
    target = tiny_target("gpt_oss")
    ids = torch.zeros(1, 8, dtype=torch.long)
    nothing = TokenBatch(ids, torch.full_like(ids, -1), torch.arange(8)[None], torch.zeros_like(ids, dtype=torch.bool))
    assert target.features(nothing, TAPS).taps_BSTH.isfinite().all()
