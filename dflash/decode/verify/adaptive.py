"""Chains whose length follows the draft's confidence: slots that will hardly survive are not verified."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dflash.decode.sampling import Sampling, Uniforms
from dflash.decode.verify.chain import Match
from dflash.decode.verify.protocol import Verifier, log_confidence
from dflash.draft.heads.slots import Slots
from dflash.types import Proposal, Verdict


@dataclass(frozen=True)
class Adaptive(Verifier):
    """A row proposes as long as the product of its slots' confidences is at least ``threshold``.

    A slot's confidence is the draft's highest probability there, or, ``trained``, what the draft's confidence head says
    (DSpark, arXiv 2607.05147). ``chain`` makes and judges the proposals. Whether a slot is proposed depends on what
    stands before it and never on the token drawn there, so rejection sampling stays exact, and no row's output depends
    on its batch. The target's pass is as long as the most confident row wants it, which the host must know: a second
    host sync a round. Raises ValueError for a threshold outside 0..1 (at 0 every slot is proposed).
    """

    threshold: float = 0.3
    trained: bool = False
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

    @property
    def needs_confidence(self) -> bool:
        return self.trained

    def propose(self, slots: Slots, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        made = self.chain.propose(slots, sampling, uniforms, start_B)
        survival_BD = self._survival(made, sampling)
        wanted_BD = survival_BD >= self.threshold  # a prefix of each row: survival only falls
        counts_B = wanted_BD.sum(-1)
        if made.counts_B is not None:
            counts_B = torch.minimum(counts_B, made.counts_B)
        longest = self._longest(counts_B)
        q = None if made.probabilities_BPV is None else made.probabilities_BPV[:, :longest]
        expected_B = 1 + (survival_BD * wanted_BD).sum(-1)
        return Proposal(made.tokens_BP[:, :longest], q, counts_B=counts_B, expected_B=expected_B)

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        return self.chain.judge(logits_BKV, proposal, sampling, uniforms, start_B)

    def _survival(self, made: Proposal, sampling: Sampling) -> Tensor:
        """float32 [B, D]: the product of the confidences up to each slot."""
        if self.trained and made.confidence_BP is not None:  # None: a block of one token has no slot
            return made.confidence_BP.cumprod(-1)
        return log_confidence(made.logits_BPV, sampling.temperature).amax(-1).cumsum(-1).exp()

    @staticmethod
    def _longest(counts_B: Tensor) -> int:
        """The extra host sync of a round: how long the target's pass has to be."""
        return int(torch.max(counts_B))
