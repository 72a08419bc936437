"""Verifiers: how a draft's block becomes proposals, and how the target judges them. One module a kind."""

from dflash.decode.verify.adaptive import Adaptive
from dflash.decode.verify.chain import Match, Rejection
from dflash.decode.verify.costs import RoundCosts, measure_costs, measure_proposing
from dflash.decode.verify.protocol import Verifier
from dflash.decode.verify.tree import CaDDTree, DDTree

__all__ = [
    "Adaptive",
    "CaDDTree",
    "DDTree",
    "Match",
    "Rejection",
    "RoundCosts",
    "Verifier",
    "measure_costs",
    "measure_proposing",
]
