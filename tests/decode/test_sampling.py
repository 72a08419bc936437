"""Sampling: verification by match repeats the baseline token for token, rejection has the target's distribution."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scripted import ScriptedDraft, perfect
from toys import plain_batch, random_prompts, tiny_draft, tiny_target
from verifiers import VERIFIERS

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.sampling import Sampling, Uniforms, draw
from dflash.decode.verify import DDTree, Match, Rejection
from dflash.types import Proposal, Tree, Verdict

PROMPTS = random_prompts((3, 11, 7, 20))
WARM = Sampling(temperature=1.0, seed=5)
CUT = Sampling(temperature=1.0, seed=5, top_k=40, top_p=0.95, min_p=0.02)


@pytest.mark.parametrize("sampling", [WARM, CUT], ids=["whole", "cut"])
@pytest.mark.parametrize("block_size", [1, 4, 8])
@pytest.mark.parametrize("family", ["gpt_oss", "qwen3"])
def test_match_repeats_the_baselines_samples(family, block_size, sampling):
    target = tiny_target(family)
    draft = tiny_draft(target)
    options = {"max_new_tokens": 20, "stop_token_ids": (5, 6, 7), "first_index": 30}
    baseline, _ = AutoregressiveDecoder(target, sampling=sampling).generate(PROMPTS, **options)
    decoder = SpeculativeDecoder(target, draft, block_size=block_size, sampling=sampling, verifier=Match())
    assert [trace.tokens for trace in decoder.generate(PROMPTS, **options)[0]] == [trace.tokens for trace in baseline]
    greedy, _ = AutoregressiveDecoder(target).generate(PROMPTS, **options)
    assert baseline != greedy


def test_a_draft_that_foresees_the_samples_is_accepted_whole():
    target = tiny_target("qwen3")
    baseline, _ = AutoregressiveDecoder(target, sampling=WARM).generate(PROMPTS, max_new_tokens=30)
    sequences = [prompt + list(trace.tokens) for prompt, trace in zip(PROMPTS, baseline, strict=True)]
    draft = ScriptedDraft(target, tiny_draft(target).shape, sequences, perfect)
    traces, _ = SpeculativeDecoder(target, draft, block_size=4, sampling=WARM).generate(PROMPTS, max_new_tokens=17)
    assert [trace.lengths for trace in traces] == [(4, 4, 4, 4)] * 4


@pytest.mark.parametrize("name", VERIFIERS)
def test_samples_do_not_depend_on_the_batch(name):
    target = tiny_target("gpt_oss", vocab_size=16)
    prompts = random_prompts((3, 11, 7, 20), vocab_size=16)
    verifier = VERIFIERS[name]
    decoder = SpeculativeDecoder(target, tiny_draft(target), block_size=4, sampling=WARM, verifier=verifier)
    together, _ = decoder.generate(prompts, max_new_tokens=20, stop_token_ids=(2,), first_index=10)
    for row, prompt in enumerate(prompts):
        alone, _ = decoder.generate([prompt], max_new_tokens=20, stop_token_ids=(2,), first_index=10 + row)
        assert alone[0].tokens == together[row].tokens
        if name != "caddtree":  # its number of nodes suits the whole batch, and rounds gain with it
            assert alone == [together[row]]
    again, _ = decoder.generate(prompts, max_new_tokens=20, stop_token_ids=(2,), first_index=11)
    assert again != together
    assert max(length for trace in together for length in trace.lengths) > 1


@pytest.mark.parametrize("verifier", [Match(), Rejection()], ids=["match", "rejection"])
def test_temperature_zero_is_greedy_under_either_verifier(verifier):
    target = tiny_target("qwen3")
    baseline, _ = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=12)
    traces, _ = SpeculativeDecoder(target, tiny_draft(target), block_size=4, verifier=verifier).generate(
        PROMPTS, max_new_tokens=12
    )
    assert [trace.tokens for trace in traces] == [trace.tokens for trace in baseline]


# The joint distribution of the first tokens, against all sequences written out.

VOCABULARY, TOKENS, SAMPLES = 8, 3, 6000
PROMPT = [1, 5, 2, 6]
CUTS = {
    "whole": {},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15},
    "all": {"top_k": 6, "top_p": 0.9, "min_p": 0.1},
}
WARMTH = 0.7


@pytest.fixture(scope="module")
def small():
    """(target over 8 tokens, draft, every continuation of 3 tokens, the target's logits before each of them)."""
    target = tiny_target("qwen3", vocab_size=VOCABULARY, sharpness=12.0)
    continuations = list(itertools.product(range(VOCABULARY), repeat=TOKENS))
    ids = torch.tensor([PROMPT + list(tokens) for tokens in continuations])
    logits = target.logits(target.features(plain_batch(ids), (0,), with_last=True).last_BSH)
    return target, tiny_draft(target, block_size=4), ids[:, len(PROMPT) :], logits[:, len(PROMPT) - 1 : -1]


def cut_by_hand(logits: list[float], *, top_k=None, top_p=None, min_p=None) -> list[float]:
    """Probabilities at temperature 0.7 with the cuts applied one after the other, token by token."""
    weights = {token: math.exp((logit - max(logits)) / WARMTH) for token, logit in enumerate(logits)}
    order = sorted(weights, key=weights.get, reverse=True)
    order = order[:top_k]
    if top_p is not None:
        total, kept = sum(weights[token] for token in order), []
        while sum(weights[token] for token in kept) < top_p * total:
            kept.append(order[len(kept)])
        order = kept
    if min_p is not None:
        order = [token for token in order if weights[token] >= min_p * weights[order[0]]]
    total = sum(weights[token] for token in order)
    return [weights[token] / total if token in order else 0.0 for token in range(len(logits))]


@pytest.mark.parametrize("cut", CUTS)
def test_cuts_are_those_written_out_by_hand(small, cut):
    logits_CTV = small[3]
    got = Sampling(temperature=WARMTH, **CUTS[cut]).probabilities(logits_CTV)
    for logits, probabilities in zip(logits_CTV[::37, 1].tolist(), got[::37, 1].tolist(), strict=True):
        assert probabilities == pytest.approx(cut_by_hand(logits, **CUTS[cut]), abs=1e-6)
    assert got.dtype == torch.float64
    assert bool((got == 0).any()) == (cut != "whole")


def deviation(small, verifier, cut: str = "whole") -> float:
    """Pearson's chi-square of the sampled continuations, as a standard normal (Wilson and Hilferty, 1931)."""
    target, draft, continuations, logits_CTV = small
    steps = torch.tensor([[cut_by_hand(step, **CUTS[cut]) for step in steps] for steps in logits_CTV.tolist()])
    exact = steps.double().gather(-1, continuations[..., None])[..., 0].prod(-1)
    assert float(exact.sum()) == pytest.approx(1.0, abs=1e-5)
    sampling = Sampling(temperature=WARMTH, seed=11, **CUTS[cut])
    decoder = SpeculativeDecoder(target, draft, block_size=4, sampling=sampling, verifier=verifier)
    traces, _ = decoder.generate([PROMPT] * SAMPLES, max_new_tokens=TOKENS)
    assert len({trace.lengths for trace in traces}) > 1  # accepted and rejected proposals
    ids = torch.tensor([trace.tokens for trace in traces])
    cells = (ids * VOCABULARY ** torch.arange(TOKENS - 1, -1, -1)).sum(-1)
    counts = cells.bincount(minlength=len(exact)).double()
    assert not bool(counts[exact == 0].any()), "a token was sampled that is cut"
    expected = exact * SAMPLES
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert freedom > 12
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", VERIFIERS)
def test_samples_have_the_targets_joint_distribution(small, name, cut):
    if name not in ("chain", "rejection") and cut not in ("whole", "all"):
        pytest.skip("these two say it for the others")
    assert abs(deviation(small, VERIFIERS[name], cut)) < 3.5


class NoResidual(Rejection):
    """Wrong on purpose: after a rejection it draws from p instead of max(p - q, 0)."""

    def judge(self, logits_BKV, proposal: Proposal, sampling, uniforms, start_B) -> Verdict:
        verdict = super().judge(logits_BKV, proposal, sampling, uniforms, start_B)
        rows = torch.arange(len(start_B))
        p_BV = sampling.probabilities(logits_BKV[rows, verdict.accepted_B])
        return Verdict(verdict.accepted_B, draw(p_BV, uniforms.at("target", start_B + verdict.accepted_B, 1)[:, 0]))


class TooGenerous(Rejection):
    """Wrong on purpose: it accepts as if the draft had been half as sure."""

    def judge(self, logits_BKV, proposal: Proposal, sampling, uniforms, start_B) -> Verdict:
        halved = Proposal(proposal.tokens_BP, proposal.probabilities_BPV * 0.5)
        return super().judge(logits_BKV, halved, sampling, uniforms, start_B)


class OneTooFew(Match):
    """Wrong on purpose: keeps one proposal less than accepted, and yet the bonus token behind them all."""

    def judge(self, logits_BKV, proposal: Proposal, sampling, uniforms, start_B) -> Verdict:
        verdict = super().judge(logits_BKV, proposal, sampling, uniforms, start_B)
        return Verdict((verdict.accepted_B - 1).clamp_min(0), verdict.bonus_B)


class CuriousTree(DDTree):
    """Wrong on purpose: it walks to whichever node lies deepest of those whose last token the target likes."""

    def judge(self, logits_BKV, proposal: Proposal, sampling, uniforms, start_B) -> Verdict:
        tree = proposal.tree
        alone_BKK = tree.visible_BKK & (
            torch.eye(len(tree.depths_BK[0]), dtype=torch.bool) | (tree.depths_BK == 0)[:, None]
        )
        lenient = Tree(tree.parents_BP, tree.depths_BK, alone_BKK, tree.max_depth)
        verdict = super().judge(logits_BKV, replace(proposal, tree=lenient), sampling, uniforms, start_B)
        honest = super().judge(logits_BKV, proposal, sampling, uniforms, start_B)
        return Verdict(honest.accepted_B, verdict.bonus_B, honest.path_BL)


class NoLimit(Rejection):
    """Wrong on purpose: it proposes one token, and behind it subtracts what it did not propose."""

    def propose(self, logits_BDV, sampling, uniforms, start_B) -> Proposal:
        return replace(super().propose(logits_BDV, sampling, uniforms, start_B), counts_B=torch.ones_like(start_B))

    def judge(self, logits_BKV, proposal: Proposal, sampling, uniforms, start_B) -> Verdict:
        verdict = super().judge(logits_BKV, proposal, sampling, uniforms, start_B)
        residual_BV = sampling.probabilities(logits_BKV[:, 1]) - proposal.probabilities_BPV[:, 1]
        wrong_B = draw(residual_BV.clamp_min(0), uniforms.at("target", start_B + 1, 1)[:, 0])
        return Verdict(verdict.accepted_B, torch.where(verdict.accepted_B == 1, wrong_B, verdict.bonus_B))


WRONG = [NoResidual(), TooGenerous(), OneTooFew(), CuriousTree(num_nodes=12), NoLimit()]


@pytest.mark.parametrize("verifier", WRONG, ids=lambda v: type(v).__name__)
def test_a_wrong_verifier_is_found_out(small, verifier):
    assert deviation(small, verifier) > 5  # an honest one stays below 3.5


def test_draws_follow_the_weights_and_never_take_weight_zero():
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0])
    uniforms = torch.linspace(0, 1, 4001)[:-1]
    counts = draw(weights.expand(4000, -1), uniforms).bincount(minlength=5)
    assert counts.tolist() == [0, 3000, 0, 1000, 0]


def test_random_numbers_depend_on_seed_prompt_stream_and_position_alone():
    def table(seed: int, indices: range, length: int = 6) -> Uniforms:
        return Uniforms(Sampling(1.0, seed), indices=indices, length=length, device=torch.device("cpu"))

    zero = torch.zeros(3, dtype=torch.long)
    first = table(1, range(4, 7)).at("target", zero, 6)
    assert torch.equal(first[1:2], table(1, range(5, 6), length=9).at("target", zero[:1], 6))
    assert torch.equal(first[:, 2:5], table(1, range(4, 7)).at("target", zero + 2, 3))
    assert not torch.equal(first, table(2, range(4, 7)).at("target", zero, 6))
    assert not torch.equal(first, table(1, range(4, 7)).at("draft", zero, 6))
    assert not torch.equal(first[0], first[1])
    assert Uniforms(Sampling(), indices=range(1), length=1, device=torch.device("cpu")).at("target", zero, 1) is None


WRONG_VALUES = [
    ("temperature", -1),
    ("top_k", 0),
    ("top_k", 2.5),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("min_p", -0.1),
    ("min_p", 2),
]


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES)
def test_values_out_of_bounds_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"decoding\.{key}={value}: must be"):
        Sampling(**{key: value})
