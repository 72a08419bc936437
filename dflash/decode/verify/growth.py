"""Growing a draft tree best first from one block's probabilities (DDTree, arXiv 2604.12989), without loops over nodes.

The slots of a block are independent, so a path's log-probability is the sum of its tokens', and the nodes a heap would
pop are simply the N paths with the highest sums. A path's own prefixes never score below it, so those N form a tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dflash.types import Tree


@dataclass(frozen=True)
class Grown:
    """N proposals in the order a heap would pop them. tokens_BN, scores_BN: log-probability of the path to each;
    parents_BN, depths_BN: as in ``Tree``. The first n of them are the tree of n proposals."""

    tokens_BN: Tensor
    scores_BN: Tensor
    parents_BN: Tensor
    depths_BN: Tensor
    num_slots: int

    def tree(self, count: int) -> Tree:
        """The tree of the first ``count`` proposals."""
        parents_BP = self.parents_BN[:, :count]
        depths_BK = torch.nn.functional.pad(self.depths_BN[:, :count], (1, 0))
        max_depth = min(count, self.num_slots)
        return Tree(parents_BP, depths_BK, _visible(parents_BP, max_depth), max_depth)


def grow(logs_BDV: Tensor, *, num_nodes: int) -> Grown:
    """The best ``num_nodes`` paths (fewer where there are no more) over D >= 1 slots with log-probabilities <= 0."""
    B, D, V = logs_BDV.shape
    best_BDR, ids_BDR = logs_BDV.topk(min(num_nodes, V), dim=-1)
    best_BDR = best_BDR.clamp_max(0)  # rounding must not put a child before its parent
    score_BW = logs_BDV.new_zeros(B, 1)  # paths of the previous depth, the anchor at first
    first, scores, tokens, parents, depths = 0, [], [], [], []
    for depth in range(D):
        width = score_BW.shape[1]
        path, rank = _pairs(width, best_BDR.shape[2], num_nodes, logs_BDV.device)
        sums = score_BW[:, path] + best_BDR[:, depth, rank]
        score_BW, at = sums.topk(min(num_nodes, sums.shape[1]), dim=-1)
        scores.append(score_BW)
        tokens.append(ids_BDR[:, depth].gather(1, rank[at]))
        parents.append(first + path[at])
        depths.append(torch.full_like(at, depth + 1))
        first += width
    # Stable, shallow before deep: a child of probability 1 ties with its parent and must come behind it.
    scores_BC = torch.cat(scores, 1)
    order_BN = scores_BC.sort(dim=1, descending=True, stable=True).indices[:, :num_nodes]
    N = order_BN.shape[1]
    number_BC = order_BN.new_zeros(B, scores_BC.shape[1] + 1)  # candidate (the anchor first) -> its node
    nodes = torch.arange(1, N + 1, device=order_BN.device).expand(B, N)
    number_BC.scatter_(1, order_BN + 1, nodes)
    parents_BN = number_BC.gather(1, torch.cat(parents, 1).gather(1, order_BN))
    pick = [torch.cat(values, 1).gather(1, order_BN) for values in (tokens, depths)]
    return Grown(pick[0], scores_BC.gather(1, order_BN), parents_BN, pick[1], D)


@lru_cache(maxsize=256)
def _pairs(width: int, ranks: int, num_nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(path, rank) of every extension that can be among the best ``num_nodes`` of its depth.

    Paths and ranks come sorted, so extension (i, r) has (i + 1) (r + 1) - 1 others that score no less.
    """
    i, r = torch.arange(width)[:, None], torch.arange(ranks)
    path, rank = ((i + 1) * (r + 1) <= num_nodes).nonzero(as_tuple=True)
    return path.to(device), rank.to(device)


def _visible(parents_BP: Tensor, max_depth: int) -> Tensor:
    """bool [B, K, K]: node j is node i or an ancestor of it; each turn doubles how far up a node sees."""
    B, P = parents_BP.shape
    up_BK = torch.nn.functional.pad(parents_BP, (1, 0))
    seen = torch.eye(P + 1, dtype=torch.bool, device=parents_BP.device).expand(B, -1, -1)
    steps = 1
    while True:
        seen = seen | seen.gather(1, up_BK[..., None].expand(B, P + 1, P + 1))
        if steps > max_depth:
            return seen
        up_BK = up_BK.gather(1, up_BK)
        steps *= 2
