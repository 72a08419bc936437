"""Verification of a draft tree in one target pass: DDTree (arXiv 2604.12989) and CaDDTree (arXiv 2606.01813).

The tree depends on the draft alone and the walk follows the target's own choices, greedy or sampled, so the
output is the target's token for token, whatever the tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dflash.decode.sampling import Sampling, Uniforms
from dflash.decode.verify.chain import CHAIN
from dflash.decode.verify.costs import RoundCosts
from dflash.decode.verify.growth import Grown, grow, grow_linked
from dflash.decode.verify.protocol import Verifier, log_confidence
from dflash.draft.heads.slots import LinkedSlots, Slots, Work
from dflash.types import Proposal, Tree, Verdict

BREADTH = 16  # paths of one depth that are followed through a head: those behind them are hardly ever accepted


class _TreeVerifier(Verifier):
    """The walk that both share; how many nodes is theirs to say."""

    needs_tree = True

    def judge(
        self, logits_BKV: Tensor, proposal: Proposal, sampling: Sampling, uniforms: Uniforms, start_B: Tensor
    ) -> Verdict:
        tree = proposal.tree
        if tree is None:  # no slot, or no node worth its while
            return CHAIN.judge(logits_BKV, proposal, sampling, uniforms, start_B)
        numbers_BL = uniforms.at("target", start_B, tree.max_depth + 1)
        numbers_BK = None if numbers_BL is None else numbers_BL.gather(1, tree.depths_BK)
        return walk(tree, proposal.tokens_BP, sampling.choose(logits_BKV, numbers_BK))


@dataclass(frozen=True)
class DDTree(_TreeVerifier):
    """The ``num_nodes`` likeliest paths, grown best first. Raises ValueError below one node."""

    num_nodes: int = 16
    name = "ddtree"

    def __post_init__(self):
        _check_nodes("num_nodes", self.num_nodes)

    def most_proposals(self, num_slots: int) -> int:
        return self.num_nodes if num_slots else 0

    def propose(self, slots: Slots, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        if slots.num_slots == 0:
            return CHAIN.propose(slots, sampling, uniforms, start_B)
        grown = _grow(slots, sampling, num_nodes=self.num_nodes)
        return _proposal(grown, grown.tokens_BN.shape[1])


@dataclass(frozen=True)
class CaDDTree(_TreeVerifier):
    """A new number of nodes, up to ``max_nodes``, each round: where expected tokens per second are the most.

    Expected by the draft's probabilities, over all rows of the batch, which share the number; seconds by ``costs``
    (None: timed once for each batch size). Any number gives the same output. The host must know the number before the
    target's pass: a second host sync a round. Raises ValueError below one node, or for costs of fewer nodes.
    """

    max_nodes: int = 64
    costs: RoundCosts | None = None
    name = "caddtree"

    def __post_init__(self):
        _check_nodes("max_nodes", self.max_nodes)
        if self.costs is not None and self.costs.max_proposals < self.max_nodes:
            raise ValueError(
                f"decoding.verifier.max_nodes={self.max_nodes}: its costs end at {self.costs.max_proposals} nodes"
            )

    def most_proposals(self, num_slots: int) -> int:
        return self.max_nodes if num_slots else 0

    def ready(self, measure: Callable[[int, Work], RoundCosts]) -> Verifier:
        if self.costs is not None:
            return self
        return replace(self, costs=measure(self.max_nodes, _Growing(self.max_nodes, temperature=0.0)))

    def propose(self, slots: Slots, sampling: Sampling, uniforms: Uniforms, start_B: Tensor) -> Proposal:
        if slots.num_slots == 0:
            return CHAIN.propose(slots, sampling, uniforms, start_B)
        grown = _grow(slots, sampling, num_nodes=self.max_nodes)
        return _proposal(grown, self._best_count(grown))

    def _best_count(self, grown: Grown) -> int:
        """The extra host sync of a round: how many nodes to verify."""
        gains = grown.scores_BN.exp().sum(0).tolist()
        return self.costs.best_count(len(grown.scores_BN), gains)


@dataclass(frozen=True)
class _Growing:
    """The tree that grows from slots, as tensors: what ``Grown`` holds. Equal ones share a recording."""

    num_nodes: int
    temperature: float

    def __call__(self, slots: Slots) -> tuple[Tensor, ...]:
        if isinstance(slots, LinkedSlots):
            return grow_linked(slots, self._logs, num_nodes=self.num_nodes, breadth=BREADTH).tensors
        return grow(self._logs(slots.logits_BDV), num_nodes=self.num_nodes).tensors

    def _logs(self, logits: Tensor) -> Tensor:
        return log_confidence(logits, self.temperature)


def _grow(slots: Slots, sampling: Sampling, *, num_nodes: int) -> Grown:
    return Grown(*slots.compute(_Growing(num_nodes, sampling.temperature)), num_slots=slots.num_slots)


def _proposal(grown: Grown, count: int) -> Proposal:
    tokens_BP = grown.tokens_BN[:, :count]
    expected_B = 1 + grown.scores_BN[:, :count].exp().sum(-1)
    return Proposal(tokens_BP, tree=grown.tree(count) if count else None, expected_B=expected_B)


def walk(tree: Tree, tokens_BP: Tensor, choices_BK: Tensor) -> Verdict:
    """Down from the anchor, each time to the child that holds the target's choice, as far as there is one.

    choices_BK: long, the target's choice behind each node.
    """
    B, P = tokens_BP.shape
    wrong_BP = tokens_BP != choices_BK.gather(1, tree.parents_BP)
    wrong_BK = torch.nn.functional.pad(wrong_BP, (1, 0))  # the anchor is given
    reached_BK = ~(tree.visible_BKK & wrong_BK[:, None]).any(-1)
    leaf_B1 = torch.where(reached_BK, tree.depths_BK, -1).argmax(-1, keepdim=True)  # siblings differ: one path
    on_path_BK = tree.visible_BKK.gather(1, leaf_B1[..., None].expand(B, 1, P + 1))[:, 0]
    nodes_BK = torch.arange(P + 1, device=tokens_BP.device) * on_path_BK
    path_BL = nodes_BK.new_zeros(B, tree.max_depth + 1).scatter_reduce(1, tree.depths_BK, nodes_BK, "amax")
    return Verdict(tree.depths_BK.gather(1, leaf_B1)[:, 0], choices_BK.gather(1, leaf_B1)[:, 0], path_BL)


def _check_nodes(key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"decoding.verifier.{key}={value}: must be at least 1; try decoding.verifier.{key}=16")
