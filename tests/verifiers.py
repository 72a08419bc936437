"""The verifiers as tests take them: by name, at sizes that suit tiny targets, with costs that no clock decides."""

from __future__ import annotations

from dflash.decode.verify import Adaptive, CaDDTree, DDTree, Match, Rejection, RoundCosts


def linear_costs(max_proposals: int, *, draft: float = 1.0, base: float = 1.0, each: float = 0.05) -> RoundCosts:
    """Target passes that cost ``base`` and ``each`` more for every proposal."""
    return RoundCosts(draft, tuple(base + each * n for n in range(max_proposals + 1)))


VERIFIERS = {
    "chain": Match(),
    "rejection": Rejection(),
    "adaptive": Adaptive(threshold=0.05),
    "adaptive rejection": Adaptive(threshold=0.05, chain=Rejection()),
    "ddtree": DDTree(num_nodes=12),
    "caddtree": CaDDTree(max_nodes=24, costs=linear_costs(24)),
}
REPEATING = [name for name, verifier in VERIFIERS.items() if verifier.repeats_target]
