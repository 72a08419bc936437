"""Verification of a chain of proposals: which of them the target keeps, and the token it adds itself.

Both verifiers are exact: what comes out has the target's own distribution, whatever the draft proposes.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dflash.decode.sampling import Sampling, Uniforms, draw
from dflash.types import Proposal, Verdict


class Verifier(Protocol):
    """How proposals are drawn from the draft's logits and judged by the target's."""

    def propose(self, logits_BPV: Tensor, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        """Proposals for output positions start_B + 0 .. P - 1."""
        ...

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        """The target's verdict; logits_BKV[:, k] is the target's prediction behind k accepted proposals."""
        ...


class Match:
    """Draft by argmax and accept while the target's own choice, greedy or sampled, equals the proposal.

    At temperature 0 this is greedy speculative decoding.
    """

    def propose(self, logits_BPV: Tensor, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        return Proposal(logits_BPV.argmax(-1))

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        choices_BK = sampling.choose(logits_BKV, uniforms.at("target", start_B, logits_BKV.shape[1]))
        accepted_B = prefix_length(choices_BK[:, :-1] == proposal.tokens_BP)
        return Verdict(accepted_B, choices_BK.gather(1, accepted_B[:, None])[:, 0])


class Rejection:
    """Draft by sampling, accept with probability min(1, p / q), then draw from max(p - q, 0) (Leviathan et al., 2023).

    At temperature 0 the same as Match.
    """

    def propose(self, logits_BPV: Tensor, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        if sampling.greedy:
            return Proposal(logits_BPV.argmax(-1))
        q_BPV = sampling.probabilities(logits_BPV)
        return Proposal(draw(q_BPV, uniforms.at("draft", start_B, logits_BPV.shape[1])), q_BPV)

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        if sampling.greedy:
            return Match().judge(logits_BKV, proposal, sampling, uniforms, start_B)
        K = logits_BKV.shape[1]
        p_BKV = sampling.probabilities(logits_BKV)
        at = proposal.tokens_BP[..., None]
        p_BP, q_BP = p_BKV[:, :-1].gather(-1, at)[..., 0], proposal.probabilities_BPV.gather(-1, at)[..., 0]
        accepted_B = prefix_length(uniforms.at("accept", start_B, K)[:, :-1] * q_BP < p_BP)
        # Behind the last proposal there is nothing to subtract: q = 0 there makes the residual p itself.
        q_BKV = torch.cat([proposal.probabilities_BPV, torch.zeros_like(p_BKV[:, :1])], dim=1)
        rows = torch.arange(len(accepted_B), device=accepted_B.device)
        p_BV, q_BV = p_BKV[rows, accepted_B], q_BKV[rows, accepted_B]
        residual_BV = (p_BV - q_BV).clamp_min(0)
        empty_B = residual_BV.sum(-1, keepdim=True) <= 0  # p == q up to rounding: rejected with probability ~0
        residual_BV = torch.where(empty_B, p_BV, residual_BV)
        u_B = uniforms.at("target", start_B + accepted_B, 1)[:, 0]
        return Verdict(accepted_B, draw(residual_BV, u_B))


def prefix_length(good_BP: Tensor) -> Tensor:
    """long [B]: how many leading entries of each row are True."""
    return good_BP.long().cumprod(-1).sum(-1)
