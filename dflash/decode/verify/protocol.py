"""What a verifier is: it makes proposals from the draft's slots and judges them by the target's.

Every verifier is exact: what comes out has the target's own distribution, whatever the draft proposes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from dflash.decode.sampling import Sampling, Uniforms
from dflash.decode.verify.costs import RoundCosts
from dflash.draft.heads.slots import Slots, Work
from dflash.types import Proposal, Verdict


class Verifier(Protocol):
    """Letters: P proposals a round, K = P + 1 tokens of the target's pass, D slots behind a block's anchor.

    name: as in conf ``verify``. needs_tree: proposals may branch, which recurrent layers cannot follow. repeats_target:
    the output is the target's own choices token for token, sampled ones too (else: in distribution). whole_chain: the
    likeliest chain over all slots is proposed, so that the chain walk foretells what greedy decoding accepts.
    needs_confidence: the draft's head must say how sure it is of its proposals.
    """

    name: str
    needs_tree: bool = False
    repeats_target: bool = True
    whole_chain: bool = False
    needs_confidence: bool = False

    def most_proposals(self, num_slots: int) -> int:
        """The most proposals of a round over blocks with this many slots behind the anchor."""
        return num_slots

    def ready(self, measure: Callable[[int, Work], RoundCosts]) -> Verifier:
        """The verifier for one batch. ``measure(n, grow)`` times rounds of up to n proposals, a tree that
        ``grow`` makes of the slots, for those that weigh them."""
        return self

    def propose(self, slots: Slots, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        """Proposals from the draft's slots for output positions start_B + 0 .. D - 1."""
        ...

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        """The target's verdict. logits_BKV[:, k] is its prediction behind node k: of a chain, behind k proposals."""
        ...


def prefix_length(good_BP: Tensor) -> Tensor:
    """long [B]: how many leading entries of each row are True."""
    return good_BP.long().cumprod(-1).sum(-1)


def log_confidence(logits: Tensor, temperature: float) -> Tensor:
    """float32 [..., V]: the draft's log-probabilities, at the sampling temperature or, greedy (0), at 1.

    They rank and count proposals and never touch what comes out, so float32 will do.
    """
    scaled = logits.float() if temperature == 0 else logits.float() / temperature
    return torch.log_softmax(scaled, -1)
