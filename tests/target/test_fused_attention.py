"""The fused attention of targets against transformers' own: features, ragged decoding, gradients not asked for."""

from __future__ import annotations

import pytest
import torch

from dflash.target.attention import FUSED, _padded, _rescaled, register_fused
from tests.toys import ATTENTION_FAMILIES, packed_batch, tiny_target

# Hidden states are of the order of 10; a wrong mask, sink or head moves them by far more than this.
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


CAPPED = "gemma2"  # its attention scores are soft-capped, between score and softmax where no fused call lets us in


@pytest.fixture(params=[family for family in ATTENTION_FAMILIES if family != CAPPED])
def targets(request):
    register_fused()
    eager, fused = tiny_target(request.param), tiny_target(request.param)
    fused.model.set_attn_implementation(FUSED)
    return eager, fused


def test_features_equal_transformers_own(targets):
    batch = packed_batch([[(5, 20), (3, 14)], [(9, 33)]], length=44)
    own, ours = (target.features(batch, (0, 2), with_last=True) for target in targets)
    used = batch.documents_BS >= 0
    torch.testing.assert_close(ours.taps_BSTH[used], own.taps_BSTH[used], **CLOSE)
    torch.testing.assert_close(ours.last_BSH[used], own.last_BSH[used], **CLOSE)


def test_ragged_sessions_equal_transformers_own(targets):
    generator = torch.Generator().manual_seed(0)
    sessions = [target.open(3, capacity=64, taps=(1,)) for target in targets]
    lengths = torch.zeros(3, dtype=torch.long)
    for width in (19, 4, 1, 8, 8):  # past the window of 16
        ids = torch.randint(0, 60, (3, width), generator=generator)
        states = [session.advance(ids) for session in sessions]
        torch.testing.assert_close(states[1][0], states[0][0], **CLOSE)
        torch.testing.assert_close(states[1][1], states[0][1], **CLOSE)
        counts = torch.randint(1, width + 1, (3,), generator=generator)
        lengths = lengths + counts
        for session in sessions:
            session.keep(counts, lengths=lengths.tolist())


def test_the_implementation_leaves_the_fingerprint_alone(targets):
    eager, fused = targets
    assert eager.fingerprint() == fused.fingerprint()


def test_soft_capped_scores_are_refused():
    register_fused()
    target = tiny_target(CAPPED)
    target.model.set_attn_implementation(FUSED)
    with pytest.raises(ValueError, match=r"cannot cap scores at 5.0; use target.attention=eager"):
        target.features(packed_batch([[(5, 20)]], length=25), (1,))


def test_sinks_count():
    """Without the sink's key the same call differs: the comparison above would notice a missing sink."""
    register_fused()
    with_sinks, without = tiny_target("gpt_oss"), tiny_target("gpt_oss")
    for target in (with_sinks, without):
        target.model.set_attn_implementation(FUSED)
    for layer in without.model.model.layers:
        layer.self_attn.sinks.data.fill_(-1e9)
    batch = packed_batch([[(5, 20)]], length=25)
    difference = with_sinks.features(batch, (1,)).taps_BSTH - without.features(batch, (1,)).taps_BSTH
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sink_as_a_factor_is_a_sink_as_a_key(dtype):
    """The CPU's form and the one for other devices: 6 query heads on 2 keys, five queries, a masked key each."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 2, 15, 8, generator=generator).to(dtype)
    key, value = (torch.randn(3, 2, 9, 8, generator=generator).to(dtype) for _ in range(2))
    mask = torch.zeros(3, 2, 3, 5, 9, dtype=dtype)
    mask[..., 4] = torch.finfo(dtype).min
    sinks = torch.randn(1, 2, 3, 1, generator=generator).to(dtype)
    forms = [form(query, key, value, mask, sinks, 0.3) for form in (_rescaled, _padded)]
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(*forms, **tolerance)
