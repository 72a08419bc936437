"""Chains whose length follows the draft's confidence: slots that will hardly survive are not verified."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dflash.decode.sampling import Sampling, Uniforms
from dflash.decode.verify.chain import Match
from dflash.decode.verify.protocol import Verifier, log_confidence
from dflash.types import Proposal, Verdict


@dataclass(frozen=True)
class Adaptive(Verifier):
    """A row proposes as long as the product of the draft's highest probabilities is at least ``threshold``.

    ``chain`` makes and judges the proposals. A row's count depends on its own draft logits alone, never on the tokens
    drawn from them, so rejection sampling stays exact, and no row's output depends on its batch. The target's pass is
    as long as the most confident row wants it, which the host must know: a second host sync a round. Raises ValueError
    for a threshold outside 0..1 (at 0 every slot is proposed).
    """

    threshold: float = 0.3
    chain: Verifier = field(default_factory=Match)
    name = "adaptive"

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"decoding.verifier.threshold={self.threshold}: must be between 0 and 1; try 0.3")
        if self.chain.needs_tree or isinstance(self.chain, Adaptive):
            raise ValueError(f"decoding.verifier.chain={self.chain.name}: no plain chain; use Match or Rejection")

    @property
    def repeats_target(self) -> bool:
        return self.chain.repeats_target

    def propose(self, logits_BDV: Tensor, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        survival_BD = log_confidence(logits_BDV, sampling).amax(-1).cumsum(-1).exp()
        wanted_BD = survival_BD >= self.threshold  # a prefix of each row: survival only falls
        counts_B = wanted_BD.sum(-1)
        longest = self._longest(counts_B)
        made = self.chain.propose(logits_BDV[:, :longest], sampling, uniforms, start_B)
        expected_B = 1 + (survival_BD * wanted_BD).sum(-1)
        return Proposal(made.tokens_BP, made.probabilities_BPV, counts_B=counts_B, expected_B=expected_B)

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        return self.chain.judge(logits_BKV, proposal, sampling, uniforms, start_B)

    @staticmethod
    def _longest(counts_B: Tensor) -> int:
        """The extra host sync of a round: how long the target's pass has to be."""
        return int(torch.max(counts_B))
