"""All experts over few tokens, against transformers' own loop over those chosen."""

from __future__ import annotations

import pytest
import torch

from dflash.target import experts
from dflash.target.experts import DENSE, register_dense
from tests.toys import plain_batch, tiny_target

MIXTURES = ("gpt_oss", "qwen3_moe", "qwen3_next")
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(params=MIXTURES)
def targets(request):
    register_dense()
    eager, dense = tiny_target(request.param), tiny_target(request.param)
    eager.model.set_experts_implementation("eager")
    dense.model.set_experts_implementation(DENSE)
    return eager, dense


@torch.no_grad()
def test_sessions_equal_transformers_own_loop(targets, monkeypatch):
    """Passes of few tokens by our products, larger ones by transformers' groups."""
    monkeypatch.setattr(experts, "MOST_TOKENS", 34)  # 17 tokens where half of the experts count
    grouped = []
    own = experts.grouped_mm_experts_forward
    monkeypatch.setattr(
        experts,
        "grouped_mm_experts_forward",
        lambda module, hidden, *rest: grouped.append(len(hidden)) or own(module, hidden, *rest),
    )
    generator = torch.Generator().manual_seed(0)
    sessions = [target.open(2, capacity=64, taps=(1,)) for target in targets]
    longest = 0
    for width in (19, 8, 1, 9, 1):
        ids = torch.randint(0, 60, (2, width), generator=generator)
        states = [session.advance(ids) for session in sessions]
        torch.testing.assert_close(states[1][0], states[0][0], **CLOSE)
        torch.testing.assert_close(states[1][1], states[0][1], **CLOSE)
        longest += width
        for session in sessions:
            session.keep(torch.full((2,), width), lengths=[longest] * 2)
    assert set(grouped) == {38, 18}


@torch.no_grad()
@pytest.mark.parametrize("chunk", [50, 1024])
def test_many_tokens_go_through_one_expert_after_the_other(targets, monkeypatch, chunk):
    """The prompts of a batch and the rows of training; in passes that may be recorded they are grouped."""
    monkeypatch.setattr(experts, "CHUNK_TOKENS", chunk)
    eager, dense = targets
    ids = torch.randint(0, 60, (3, 90), generator=torch.Generator().manual_seed(1))
    batch = plain_batch(ids)
    with monkeypatch.context() as patched:
        patched.setattr(experts, "grouped_mm_experts_forward", lambda *_: pytest.fail("grouped"))
        ours, own = (target.features(batch, (1, 2), with_last=True) for target in (dense, eager))
    torch.testing.assert_close(ours.taps_BSTH, own.taps_BSTH, **CLOSE)
    torch.testing.assert_close(ours.last_BSH, own.last_BSH, **CLOSE)
    monkeypatch.setattr(experts, "shapes_are_fixed", lambda: True)
    monkeypatch.setattr(experts, "_in_turn", lambda *_: pytest.fail("shapes that depend on values"))
    torch.testing.assert_close(dense.features(batch, (1,)).taps_BSTH, own.taps_BSTH[:, :, :1], **CLOSE)


@torch.no_grad()
def test_experts_that_are_many_are_grouped(monkeypatch):
    """Computing 8 experts for one that counts is no bargain."""
    monkeypatch.setattr(experts, "MOST_WASTE", 1)
    monkeypatch.setattr(experts, "_product", lambda *given: pytest.fail("all experts computed"))
    register_dense()
    target = tiny_target("gpt_oss")
    target.model.set_experts_implementation(DENSE)
    target.open(1, capacity=8).advance(torch.tensor([[1, 2]]))
