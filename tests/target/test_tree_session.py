"""Trees in a target session: every node's state is that of its own path, and an accepted path goes on as a chain."""

from __future__ import annotations

import pytest
import torch
from toys import ATTENTION_FAMILIES, plain_batch, tiny_target

from dflash.target.masks import tree_over_slots
from dflash.types import Tree

TAPS = (0, 2)
LENGTHS = (19, 5, 24)  # past the window of 16, and not
PARENTS = ((0, 0, 1, 1, 3, 2, 5), (0, 1, 2, 3, 4, 5, 6), (0, 0, 0, 0, 4, 4, 5))


def make_tree(parents: tuple[tuple[int, ...], ...]) -> Tree:
    paths = [[ancestors(row, node) for node in range(len(row) + 1)] for row in parents]
    visible = torch.zeros(len(parents), len(parents[0]) + 1, len(parents[0]) + 1, dtype=torch.bool)
    for b, row in enumerate(paths):
        for node, path in enumerate(row):
            visible[b, node, path] = True
    depths = torch.tensor([[len(path) - 1 for path in row] for row in paths])
    return Tree(torch.tensor(parents), depths, visible, int(depths.max()))


def ancestors(parents: tuple[int, ...], node: int) -> list[int]:
    """Nodes from the anchor down to ``node``."""
    return [0] if node == 0 else [*ancestors(parents, parents[node - 1]), node]


@pytest.fixture(scope="module", params=ATTENTION_FAMILIES)
def advanced(request):
    """(target, prompts, session after a tree on ragged rows, ids of its nodes, tree, what the advance returned)."""
    target = tiny_target(request.param)
    ids = torch.randint(0, 64, (3, max(LENGTHS)), generator=torch.Generator().manual_seed(2))
    session = target.open(3, capacity=60, taps=TAPS)
    session.advance(ids)
    session.keep(torch.tensor(LENGTHS), lengths=LENGTHS)
    tree = make_tree(PARENTS)
    nodes = torch.randint(0, 64, tree.depths_BK.shape, generator=torch.Generator().manual_seed(4))
    return target, ids, session, nodes, tree, session.advance(nodes, tree=tree)


def alone(target, ids: list[int]):
    features = target.features(plain_batch(torch.tensor([ids])), TAPS, with_last=True)
    return features.last_BSH[0, -1], features.taps_BSTH[0, -1]


def test_each_node_has_the_state_of_its_own_path(advanced):
    target, ids, _, nodes, _, (hidden, taps) = advanced
    for row, length in enumerate(LENGTHS):
        for node in range(nodes.shape[1]):
            path = nodes[row, ancestors(PARENTS[row], node)].tolist()
            last, tapped = alone(target, ids[row, :length].tolist() + path)
            assert float((hidden[row, node] - last).abs().max()) < 5e-5
            assert float((taps[row, node] - tapped).abs().max()) < 5e-5


def test_an_accepted_path_goes_on_as_a_chain(advanced):
    target, ids, session, nodes, tree, _ = advanced
    kept = [ancestors(PARENTS[row], node) for row, node in enumerate((4, 5, 6))]
    path = torch.tensor([nodes_of + [0] * (tree.max_depth + 1 - len(nodes_of)) for nodes_of in kept])
    counts = torch.tensor([len(nodes_of) for nodes_of in kept])
    after = torch.tensor(LENGTHS) + counts
    session.keep(counts, lengths=after.tolist(), path_BL=path)
    more = torch.randint(0, 64, (3, 2), generator=torch.Generator().manual_seed(6))
    hidden, _ = session.advance(more)
    for row, length in enumerate(LENGTHS):
        before = ids[row, :length].tolist() + nodes[row, kept[row]].tolist()
        for k in range(2):
            last, _ = alone(target, before + more[row, : k + 1].tolist())
            assert float((hidden[row, k] - last).abs().max()) < 5e-5


@pytest.mark.parametrize("window", [None, 3, 7])
def test_the_mask_of_a_tree_is_what_its_sentence_says(window):
    tree, lengths, used = make_tree(PARENTS), torch.tensor([4, 1, 6]), 14
    slots = lengths[:, None] + torch.arange(8)
    positions = lengths[:, None] + tree.depths_BK
    mask = tree_over_slots(slots, positions, tree.visible_BKK, num_used=used, window=window)
    assert mask.shape == (3, 1, 8, used)
    for row, length in enumerate(lengths.tolist()):
        for node in range(8):
            path = ancestors(PARENTS[row], node)
            at = {slot: slot for slot in range(length)} | {length + n: length + d for d, n in enumerate(path)}
            position = length + len(path) - 1
            expected = {slot for slot, p in at.items() if window is None or position - p < window}
            assert set(mask[row, 0, node].nonzero()[:, 0].tolist()) == expected
