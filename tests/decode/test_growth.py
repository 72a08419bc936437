"""Draft trees: the nodes a heap would pop, in its order, and a walk that follows the target's choices."""

from __future__ import annotations

import heapq
import itertools

import pytest
import torch

from dflash.decode.verify.growth import best_pairs, grow
from dflash.decode.verify.tree import walk


def popped_from_a_heap(logs: list[list[float]], num_nodes: int) -> list[tuple[int, ...]]:
    """The paper's way, for one row: pop the best path, push its next sibling and its first child."""
    order = [sorted(range(len(slot)), key=lambda token: -slot[token]) for slot in logs]

    def entry(ranks: tuple[int, ...]):
        return -sum(logs[d][order[d][r]] for d, r in enumerate(ranks)), ranks

    heap, paths = [entry((0,))], []
    while heap and len(paths) < num_nodes:
        _, ranks = heapq.heappop(heap)
        paths.append(tuple(order[d][r] for d, r in enumerate(ranks)))
        if ranks[-1] + 1 < len(logs[0]):
            heapq.heappush(heap, entry((*ranks[:-1], ranks[-1] + 1)))
        if len(ranks) < len(logs):
            heapq.heappush(heap, entry((*ranks, 0)))
    return paths


def paths_of(grown, row: int) -> list[tuple[int, ...]]:
    """The tokens from the anchor to each node, by following parents."""
    paths = [()]
    for token, parent in zip(grown.tokens_BN[row].tolist(), grown.parents_BN[row].tolist(), strict=True):
        assert parent < len(paths), "a parent comes behind its child"
        paths.append((*paths[parent], token))
    return paths[1:]


@pytest.mark.parametrize(
    ("slots", "vocabulary", "num_nodes"),
    [(1, 5, 3), (1, 5, 9), (2, 3, 50), (4, 6, 1), (4, 6, 2), (4, 6, 17), (7, 40, 64), (15, 8, 33)],
)
def test_a_tree_is_what_a_heap_pops(slots, vocabulary, num_nodes):
    generator = torch.Generator().manual_seed(slots * 100 + num_nodes)
    logs = (3 * torch.randn(3, slots, vocabulary, generator=generator)).double().log_softmax(-1)
    grown = grow(logs, num_nodes=num_nodes)
    for row in range(3):
        expected = popped_from_a_heap(logs[row].tolist(), num_nodes)
        assert paths_of(grown, row) == expected
        assert grown.depths_BN[row].tolist() == [len(path) for path in expected]
        sums = [sum(float(logs[row, d, token]) for d, token in enumerate(path)) for path in expected]
        assert grown.scores_BN[row].tolist() == pytest.approx(sums)


@pytest.mark.parametrize("num_nodes", [1, 4, 5, 20])
def test_ties_leave_a_tree(num_nodes):
    """A token of probability 1 ties with its parent; equal tokens tie with each other."""
    logs = torch.full((1, 5, 6), -1e4)
    logs[0, :, 2] = 0.0
    logs[0, 3] = -1.0
    grown = grow(logs, num_nodes=num_nodes)
    paths = paths_of(grown, 0)
    assert len(set(paths)) == num_nodes
    assert paths[:3] == [(2,), (2, 2), (2, 2, 2)][:num_nodes]


@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_a_node_sees_itself_and_its_ancestors(count):
    logs = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    grown = grow(logs, num_nodes=30)
    tree = grown.tree(count)
    for row in range(2):
        paths = [(), *paths_of(grown, row)[:count]]
        for i, j in itertools.product(range(count + 1), repeat=2):
            assert bool(tree.visible_BKK[row, i, j]) == (paths[i][: len(paths[j])] == paths[j]), (paths[i], paths[j])
        assert tree.depths_BK[row].tolist() == [len(path) for path in paths]
        assert max(map(len, paths)) <= tree.max_depth


def test_the_walk_follows_the_targets_choices_as_far_as_the_tree_goes():
    generator = torch.Generator().manual_seed(5)
    B, V = 200, 3
    grown = grow(torch.randn(B, 4, V, generator=generator).log_softmax(-1), num_nodes=25)
    tree = grown.tree(25)
    choices = torch.randint(0, V, (B, 26), generator=generator)
    verdict = walk(tree, grown.tokens_BN, choices)
    depths = set()
    for row in range(B):
        paths = [(), *paths_of(grown, row)]
        node, nodes = 0, [0]
        while (*paths[node], int(choices[row, node])) in paths:
            node = paths.index((*paths[node], int(choices[row, node])))
            nodes.append(node)
        assert int(verdict.accepted_B[row]) == len(nodes) - 1
        assert int(verdict.bonus_B[row]) == int(choices[row, node])
        assert verdict.path_BL[row, : len(nodes)].tolist() == nodes
        depths.add(len(nodes))
    assert depths == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("paths", "vocabulary", "count"), [(1, 640, 5), (16, 256, 17), (3, 128, 6), (3, 100, 7), (1, 9, 20)]
)
def test_the_best_pairs_are_those_of_a_full_sort(paths, vocabulary, count):
    sums = torch.randn(4, paths, vocabulary, generator=torch.Generator().manual_seed(count))
    found, tokens, path = best_pairs(sums, count=count)
    expected, at = sums.flatten(1).sort(dim=1, descending=True)
    assert torch.equal(found, expected[:, :count])
    assert torch.equal(path * vocabulary + tokens, at[:, :count])
