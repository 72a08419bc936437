"""First divergence and regret in half precision: small for real decoding, large for a wrong token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import random_prompts, tiny_draft, tiny_target

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.sampling import Sampling
from dflash.evaluation import tables
from dflash.evaluation.divergence import divergence, first_difference, regrets
from dflash.evaluation.fields import flat
from dflash.evaluation.measure import measure

PROMPTS = random_prompts((5, 17, 9, 28, 11, 3))
NEW_TOKENS = 40


@torch.no_grad()
def half(family: str, *, twins: bool = False):
    """A target in bf16; with ``twins`` tokens come in pairs that rounding alone tells apart."""
    target = tiny_target(family)
    target.model.to(torch.bfloat16)
    if twins:
        weight = target.lm_head.weight
        generator = torch.Generator().manual_seed(0)
        factor = 1 + torch.randn(weight[::2].shape, generator=generator) * torch.finfo(torch.bfloat16).eps
        weight[1::2] = (weight[::2].float() * factor).to(weight.dtype)
    return target


def decode(target, draft):
    """(autoregressive, speculative) traces; the one as a batch, the other prompt by prompt: ties fall otherwise."""
    own, _ = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    decoder = SpeculativeDecoder(target, draft, block_size=8)
    return own, [decoder.generate([prompt], max_new_tokens=NEW_TOKENS)[0][0] for prompt in PROMPTS]


@pytest.mark.parametrize("family", ["gpt_oss", "llama", "gemma2", "qwen3_next"])
def test_real_decoding_in_bf16_stays_within_its_bound(family):
    target = half(family)
    own, ours = decode(target, tiny_draft(target))
    found = divergence(target, PROMPTS, own, ours, block_size=8)
    assert found["dtype"] == "bfloat16"
    assert found["within"] == {"equal": len(PROMPTS), "total": len(PROMPTS)}
    assert 0 < found["bound"] < 1.5
    assert found["num_diverged"] == sum(a.tokens != b.tokens for a, b in zip(own, ours, strict=True))
    for entry, a, b in zip(found["per_prompt"], own, ours, strict=True):
        assert entry["first"] == first_difference(a.tokens, b.tokens)
        assert 0 <= entry["regret"] <= found["worst_regret"] <= found["bound"]


def test_a_near_tie_that_falls_the_other_way_diverges_within_the_bound():
    target = half("llama", twins=True)
    decoder = AutoregressiveDecoder(target)
    own, _ = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    prompt, tokens = PROMPTS[3], own[3].tokens
    logits = target.model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
    best = logits.topk(2)
    gap = best.values[:, 0] - best.values[:, 1]
    at = next(i for i, value in enumerate(gap.tolist()) if i > 4 and 0 < value < 0.03)
    start = [*tokens[:at], int(best.indices[at, 1])]
    rest, _ = decoder.generate([[*prompt, *start]], max_new_tokens=NEW_TOKENS - len(start))
    ours = [*own[:3], replace(own[3], tokens=(*start, *rest[0].tokens)), *own[4:]]
    found = divergence(target, PROMPTS, own, ours, block_size=8)
    assert (found["num_diverged"], found["earliest"], found["per_prompt"][3]["first"]) == (1, at, at)
    assert found["per_prompt"][3]["regret"] >= float(gap[at]) > 0
    assert found["worst_regret"] <= found["bound"]
    assert found["within"]["equal"] == len(PROMPTS)


def test_a_wrong_token_is_named_and_beyond_the_bound():
    target = half("llama")
    own, _ = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    tokens = list(own[2].tokens)
    best = target.model(input_ids=torch.tensor([PROMPTS[2] + tokens[:10]])).logits[0, -1].float()
    tokens[10] = int(best.argmin())
    ours = [*own[:2], replace(own[2], tokens=tuple(tokens)), *own[3:]]
    found = divergence(target, PROMPTS, own, ours, block_size=4)
    assert (found["num_diverged"], found["earliest"]) == (1, 10)
    assert [entry["first"] for entry in found["per_prompt"]] == [None, None, 10, None, None, None]
    assert found["within"] == {"equal": len(PROMPTS) - 1, "total": len(PROMPTS)}
    assert found["per_prompt"][2]["regret"] >= float(best.max() - best.min()) - found["bound"] > found["bound"]
    assert found["worst_regret_of_baseline"] <= found["bound"]


def test_regret_is_that_of_a_plain_forward():
    target = tiny_target("qwen3")
    generator = torch.Generator().manual_seed(1)
    prompt, tokens = PROMPTS[1], torch.randint(0, 64, (13,), generator=generator).tolist()
    logits = target.model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = (logits.max(-1).values - logits[torch.arange(13), torch.tensor(tokens)]).max()
    for block_size in (1, 5, 16):
        found = regrets(target, prompt, tokens, block_size=block_size)
        assert found.worst == pytest.approx(float(expected), abs=1e-4)
        assert found.magnitude == pytest.approx(float(logits.abs().max()), abs=1e-4)
        assert found.noise < 1e-4


def test_fp32_has_no_excuse():
    target = tiny_target("llama")
    assert divergence(target, PROMPTS, [], [], block_size=4) is None


def test_first_difference():
    assert first_difference((1, 2, 3), (1, 2, 3)) is None
    assert first_difference((1, 2, 3), (1, 5, 3)) == 1
    assert first_difference((1, 2, 3), (1, 2)) == 2  # a stop token that came early


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_measurement_reports_it_below_fp32_when_greedy(temperature):
    target = half("qwen3")
    options = {"label": "trained draft", "max_new_tokens": 12, "stop_token_ids": (), "batch_size": 3, "warm_up": False}
    found = measure(target, tiny_draft(target), PROMPTS[:3], sampling=Sampling(temperature=temperature), **options)
    if temperature:
        assert found["divergence"] is None
    else:
        assert found["divergence"]["within"] == {"equal": 3, "total": 3}
        assert len(found["divergence"]["per_prompt"]) == 3
        names = flat(found)
        assert names["divergence.bound"] > 0
        assert not any("per_prompt" in name for name in names)


@pytest.mark.parametrize("within", [6, 5])
def test_tables_excuse_near_ties_and_nothing_else(within, make_measurement):
    found = {
        "dtype": "bfloat16",
        "num_diverged": 2,
        "earliest": 9,
        "worst_regret": 0.0625,
        "bound": 0.25,
        "within": {"equal": within, "total": 6},
    }
    text = tables.markdown_table({"measurements": [make_measurement() | {"divergence": found}]})
    assert ("**63 of 64**" in text) == (within < 6)
    details = tables.markdown_table(
        {"measurements": [make_measurement() | {"divergence": found}]}, tables.DETAIL_COLUMNS
    )
    cell = "0.0625 / 0.25 (bfloat16; 2 diverge, the first at token 10)"
    assert (f"| **{cell}** |" in details) == (within < 6)
    assert cell in details
