"""Growing a draft tree best first from one block's probabilities (DDTree, arXiv 2604.12989), without loops over nodes.

A path's log-probability is the sum of its tokens', each given those before it, and the nodes a heap would pop are
simply the N paths with the highest sums. A path's own prefixes never score below it, so those N form a tree, and the
best N of one depth extend the best N of the depth before. Without a head slots are independent of the path to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dflash.draft.heads.slots import LinkedSlots
from dflash.types import Tree

GROUP = 64  # tokens of the vocabulary that ``best_pairs`` looks at together


@dataclass(frozen=True)
class Grown:
    """N proposals in the order a heap would pop them. tokens_BN, scores_BN: log-probability of the path to each;
    parents_BN, depths_BN, visible_BKK: as in ``Tree``. The first n of them are the tree of n proposals."""

    tokens_BN: Tensor
    scores_BN: Tensor
    parents_BN: Tensor
    depths_BN: Tensor
    visible_BKK: Tensor
    num_slots: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All but ``num_slots``."""
        return self.tokens_BN, self.scores_BN, self.parents_BN, self.depths_BN, self.visible_BKK

    def tree(self, count: int) -> Tree:
        """The tree of the first ``count`` proposals."""
        depths_BK = torch.nn.functional.pad(self.depths_BN[:, :count], (1, 0))
        visible_BKK = self.visible_BKK[:, : 1 + count, : 1 + count]  # ancestors come first
        return Tree(self.parents_BN[:, :count], depths_BK, visible_BKK, min(count, self.num_slots))


def grow(logs_BDV: Tensor, *, num_nodes: int) -> Grown:
    """The best ``num_nodes`` paths (fewer where there are no more) over D >= 1 slots with log-probabilities <= 0."""
    B, D, V = logs_BDV.shape
    best_BDR, ids_BDR = logs_BDV.topk(min(num_nodes, V), dim=-1)
    best_BDR = best_BDR.clamp_max(0)  # rounding must not put a child before its parent
    score_BW = logs_BDV.new_zeros(B, 1)  # paths of the previous depth, the anchor at first
    levels = []
    for depth in range(D):
        path, rank = _pairs(score_BW.shape[1], best_BDR.shape[2], num_nodes, logs_BDV.device)
        sums = score_BW[:, path] + best_BDR[:, depth, rank]
        score_BW, at = sums.topk(min(num_nodes, sums.shape[1]), dim=-1)
        levels.append(_Level(score_BW, ids_BDR[:, depth].gather(1, rank[at]), path[at]))
    return _gather(levels, num_nodes=num_nodes)


def grow_linked(
    slots: LinkedSlots, logs: Callable[[Tensor], Tensor], *, num_nodes: int, breadth: int | None = None
) -> Grown:
    """``grow`` where a head makes a slot depend on the path to it. logs: logits -> log-probabilities.

    breadth: paths of one depth that are followed further, the best; the others end there. A path followed costs a row
    of logits over the whole vocabulary. None: all.
    """
    memory_BWG = slots.begin()
    score_BW = memory_BWG.new_zeros(len(memory_BWG), 1, dtype=torch.float32)
    levels: list[_Level] = []
    for depth in range(slots.num_slots):
        if levels:
            last = levels[-1]
            memory_BWG = slots.follow(memory_BWG, last.paths_BN[:, :breadth], last.tokens_BN[:, :breadth])
            score_BW = last.scores_BN[:, :breadth]
        sums_BWV = score_BW[..., None] + logs(slots.logits_at(depth, memory_BWG)).clamp_max(0)
        levels.append(_Level(*best_pairs(sums_BWV, count=num_nodes)))
    return _gather(levels, num_nodes=num_nodes)


def best_pairs(sums_BWV: Tensor, *, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(sums, tokens, paths), each [B, count], of the largest entries, largest first; fewer where there are no more.

    The largest ``count`` lie in the ``count`` groups of tokens whose maxima are largest, so that most of the vocabulary
    is only looked at for maxima, which a CPU finds ten times as fast as it selects.
    """
    B, W, V = sums_BWV.shape
    groups = W * V // GROUP
    if V % GROUP or groups <= count:
        found, at = sums_BWV.flatten(1).topk(min(count, W * V), dim=-1)
        return found, at % V, at // V
    grouped = sums_BWV.view(B, groups, GROUP)
    group_BC = grouped.amax(-1).topk(count, dim=-1).indices
    candidates = grouped.gather(1, group_BC[..., None].expand(-1, -1, GROUP)).flatten(1)
    found, place = candidates.topk(count, dim=-1)
    at = group_BC.gather(1, place // GROUP) * GROUP + place % GROUP
    return found, at % V, at // V


@dataclass(frozen=True)
class _Level:
    """The best paths of one depth, best first: scores, last tokens, and which path of the depth before each extends."""

    scores_BN: Tensor
    tokens_BN: Tensor
    paths_BN: Tensor


def _gather(levels: Sequence[_Level], *, num_nodes: int) -> Grown:
    """The best paths of all depths, numbered best first."""
    scores_BC = torch.cat([level.scores_BN for level in levels], 1)
    tokens_BC = torch.cat([level.tokens_BN for level in levels], 1)
    first, width, parents, depths = 0, 1, [], []  # candidates are numbered from 1 on, by depth; 0 is the anchor
    for depth, level in enumerate(levels, start=1):
        parents.append(first + level.paths_BN)
        depths.append(torch.full_like(level.tokens_BN, depth))
        first, width = first + width, level.tokens_BN.shape[1]
    # Stable, shallow before deep: a child of probability 1 ties with its parent and must come behind it.
    order_BN = scores_BC.sort(dim=1, descending=True, stable=True).indices[:, :num_nodes]
    B, N = order_BN.shape
    number_BC = order_BN.new_zeros(B, scores_BC.shape[1] + 1)  # candidate (the anchor first) -> its node
    nodes = torch.arange(1, N + 1, device=order_BN.device).expand(B, N)
    number_BC.scatter_(1, order_BN + 1, nodes)
    parents_BN = number_BC.gather(1, torch.cat(parents, 1).gather(1, order_BN))
    depths_BN, visible_BKK = torch.cat(depths, 1).gather(1, order_BN), _visible(parents_BN, len(levels))
    tokens_BN, scores_BN = tokens_BC.gather(1, order_BN), scores_BC.gather(1, order_BN)
    return Grown(tokens_BN, scores_BN, parents_BN, depths_BN, visible_BKK, len(levels))


@lru_cache(maxsize=256)
def _pairs(width: int, ranks: int, num_nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(path, rank) of every extension that can be among the best ``num_nodes`` of its depth.

    Paths and ranks come sorted, so extension (i, r) has (i + 1) (r + 1) - 1 others that score no less.
    """
    pairs = [(i, r) for i in range(width) for r in range(ranks) if (i + 1) * (r + 1) <= num_nodes]
    path, rank = torch.tensor(pairs, device=device).T.contiguous()
    return path, rank


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
