"""FlexAttention of a target's packed rows against transformers' own; on a CPU uncompiled, on a GPU as it is used."""

from __future__ import annotations

import pytest
import torch

from dflash.target.flex import FLEX, block_masks, register_flex
from dflash.target.masks import packed_causal
from dflash.target.used import implementations
from tests.target.test_fused_attention import CAPPED, CLOSE
from tests.toys import ATTENTION_FAMILIES, packed_batch, tiny_target

FAMILIES = [family for family in ATTENTION_FAMILIES if family != CAPPED]
ROWS = [[(5, 120), (3, 14)], [(9, 133)]]  # longer than a block of 128, and than every window


def pair(family: str):
    register_flex()
    eager, flex = tiny_target(family), tiny_target(family)
    flex.model.set_attn_implementation(FLEX)
    return eager, flex


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_transformers_own(family):
    batch = packed_batch(ROWS, length=144)
    own, ours = (target.features(batch, (0, 2), with_last=True) for target in pair(family))
    used = batch.documents_BS >= 0
    torch.testing.assert_close(ours.taps_BSTH[used], own.taps_BSTH[used], **CLOSE)
    torch.testing.assert_close(ours.last_BSH[used], own.last_BSH[used], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_sessions_equal_transformers_own(family):
    """Their masks are tensors: they take the fused way."""
    ids = torch.randint(0, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    states = []
    for target in pair(family):
        session = target.open(2, capacity=48, taps=(1,))
        session.advance(ids[:, :20])
        session.keep(torch.tensor([20, 20]), lengths=[20, 20])
        states.append(session.advance(ids[:, 20:]))
    for ours, own in zip(states[1], states[0], strict=True):
        torch.testing.assert_close(ours, own, **CLOSE)


def test_reports_tell_both_ways():
    told = [implementations(target)["attention"] for target in pair("gpt_oss")]
    assert told == ["eager", "flex for packed rows, fused for sessions"]


def test_sinks_count():
    """A sink left out would be noticed by the comparison above."""
    with_sinks, without = pair("gpt_oss")[1], pair("gpt_oss")[1]
    for layer in without.model.model.layers:
        layer.self_attn.sinks.data.fill_(-1e9)
    batch = packed_batch([[(5, 20)]], length=25)
    difference = with_sinks.features(batch, (1,)).taps_BSTH - without.features(batch, (1,)).taps_BSTH
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("window", [None, 16])
def test_a_block_mask_shows_what_the_whole_mask_shows(window):
    documents_BS = packed_batch(ROWS, length=144).documents_BS
    mask_mod = block_masks(documents_BS, [window])[window].mask_mod
    b, q, k = torch.meshgrid(*(torch.arange(size) for size in (2, 144, 144)), indexing="ij")
    assert torch.equal(mask_mod(b, None, q, k), packed_causal(documents_BS, window)[:, 0])


def test_what_documents_and_windows_hide_is_passed_over():
    """Four documents of 512 tokens: of 16 x 16 blocks a query's own document is computed, up to its own block."""
    documents_BS = torch.arange(4).repeat_interleave(512)[None]
    whole, slid = block_masks(documents_BS, [None, 128]).values()
    assert whole.sparsity() == pytest.approx(100 * (1 - 4 * 10 / 256), abs=0.1)
    assert slid.sparsity() == pytest.approx(100 * (1 - 4 * 7 / 256), abs=0.1)


def test_soft_capped_scores_are_refused():
    target = pair(CAPPED)[1]
    with pytest.raises(ValueError, match=r"flex: it cannot cap scores at 5.0; use target.attention=eager"):
        target.features(packed_batch([[(5, 20)]], length=25), (1,))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: compiled kernels")
@pytest.mark.parametrize("family", ["gpt_oss", "qwen3", "mistral"])
def test_compiled_on_a_gpu_it_equals_transformers_own(family):
    batch = packed_batch(ROWS, length=144).to("cuda")
    found = []
    for target in pair(family):
        target.model.to("cuda")
        found.append(target.features(batch, (0, 2), with_last=True).taps_BSTH[batch.documents_BS >= 0])
    torch.testing.assert_close(found[1], found[0], atol=2e-3, rtol=1e-3)
