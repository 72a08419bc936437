"""Verification of a chain of proposals: the longest prefix that the target keeps, and the token it adds itself."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dflash.argmax import argmax
from dflash.decode.sampling import Sampling, Uniforms, draw
from dflash.decode.verify.protocol import Verifier, prefix_length
from dflash.draft.heads.slots import Slots, Walk, likeliest
from dflash.replay import Replay
from dflash.types import Proposal, Verdict


class Match(Verifier):
    """Draft by argmax and accept while the target's own choice, greedy or sampled, equals the proposal.

    At temperature 0 this is greedy speculative decoding.
    """

    name = "chain"
    whole_chain = True

    def __init__(self):
        self.greedy_verdict = Replay(_greedy_verdict, [])

    def propose(self, slots: Slots, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        return _proposal(slots.walk(likeliest))

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        if sampling.greedy and proposal.counts_B is None:
            return Verdict(*self.greedy_verdict(logits_BKV, proposal.tokens_BP))
        choices_BK = sampling.choose(logits_BKV, uniforms.at("target", start_B, logits_BKV.shape[1]))
        return Verdict(*_matched(choices_BK, _made(proposal, choices_BK[:, :-1] == proposal.tokens_BP)))


class Rejection(Verifier):
    """Draft by sampling, accept with probability min(1, p / q), then draw from max(p - q, 0) (Leviathan et al., 2023).

    At temperature 0 the same as Match.
    """

    name = "rejection"
    repeats_target = False
    whole_chain = True

    def propose(self, slots: Slots, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        if sampling.greedy:
            return CHAIN.propose(slots, sampling, uniforms, start_B)
        numbers_BD = uniforms.at("draft", start_B, slots.num_slots)
        drawn_from = []

        def choose(logits_BNV: Tensor, part: slice) -> Tensor:
            drawn_from.append(sampling.probabilities(logits_BNV))
            return draw(drawn_from[-1], numbers_BD[:, part])

        made = _proposal(slots.walk(choose))
        return replace(made, probabilities_BPV=torch.cat(drawn_from, 1))

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        if sampling.greedy:
            return CHAIN.judge(logits_BKV, proposal, sampling, uniforms, start_B)
        K = logits_BKV.shape[1]
        p_BKV = sampling.probabilities(logits_BKV)
        at = proposal.tokens_BP[..., None]
        p_BP, q_BP = p_BKV[:, :-1].gather(-1, at)[..., 0], proposal.probabilities_BPV.gather(-1, at)[..., 0]
        accepted_B = prefix_length(_made(proposal, uniforms.at("accept", start_B, K)[:, :-1] * q_BP < p_BP))
        # Behind the last proposal there is nothing to subtract: q = 0 there makes the residual p itself.
        q_BKV = torch.cat([proposal.probabilities_BPV, torch.zeros_like(p_BKV[:, :1])], dim=1)
        rows = torch.arange(len(accepted_B), device=accepted_B.device)
        p_BV, q_BV = p_BKV[rows, accepted_B], q_BKV[rows, accepted_B]
        if proposal.counts_B is not None:
            q_BV = q_BV.masked_fill((accepted_B == proposal.counts_B)[:, None], 0.0)
        residual_BV = (p_BV - q_BV).clamp_min(0)
        empty_B = residual_BV.sum(-1, keepdim=True) <= 0  # p == q up to rounding: rejected with probability ~0
        residual_BV = torch.where(empty_B, p_BV, residual_BV)
        u_B = uniforms.at("target", start_B + accepted_B, 1)[:, 0]
        return Verdict(accepted_B, draw(residual_BV, u_B))


def _greedy_verdict(logits_BKV: Tensor, tokens_BP: Tensor) -> tuple[Tensor, Tensor]:
    choices_BK = argmax(logits_BKV)
    return _matched(choices_BK, choices_BK[:, :-1] == tokens_BP)


def _matched(choices_BK: Tensor, good_BP: Tensor) -> tuple[Tensor, Tensor]:
    """(accepted_B, bonus_B): the leading proposals that are good, and the target's choice behind them."""
    accepted_B = prefix_length(good_BP)
    return accepted_B, choices_BK.gather(1, accepted_B[:, None])[:, 0]


def _proposal(walk: Walk) -> Proposal:
    return Proposal(
        walk.tokens_BD, counts_B=walk.counts_B, logits_BPV=walk.logits_BDV, confidence_BP=walk.confidence_BD
    )


def _made(proposal: Proposal, good_BP: Tensor) -> Tensor:
    """``good_BP``, False where a row makes no proposal."""
    if proposal.counts_B is None:
        return good_BP
    return good_BP & (torch.arange(good_BP.shape[1], device=good_BP.device) < proposal.counts_B[:, None])


CHAIN = Match()  # what other verifiers fall back on: one object, whose recordings last
