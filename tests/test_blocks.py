"""Anchors and blocks: drawn only where they can teach, labelled in place, never across holes or borders."""

from __future__ import annotations

import torch
from toys import MASK, packed_batch

from dflash.blocks import (
    anchor_candidates,
    chunk_anchors,
    draw_anchors,
    make_blocks,
    novel_anchors,
    random_anchors,
    repeated_ngrams,
    seeded_generator,
)
from dflash.types import TokenBatch

# Row 0: two documents; row 1: one long one; row 2: one supervised token, too few for any anchor.
ROWS = [[(5, 12), (3, 15)], [(2, 38)], [(9, 1)]]


def batch_with_hole() -> TokenBatch:
    batch = packed_batch(ROWS, length=40)
    batch.supervised_BS[1, 20:23] = False
    return batch


def test_candidates_have_a_supervised_token_there_and_next_in_one_document():
    batch = batch_with_hole()
    found = anchor_candidates(batch)
    for b in range(3):
        for s in range(40):
            fit = s + 1 < 40 and batch.supervised_BS[b, s] and batch.supervised_BS[b, s + 1]
            fit = fit and batch.documents_BS[b, s] == batch.documents_BS[b, s + 1] >= 0
            assert bool(found[b, s]) == bool(fit), (b, s)


def test_a_document_supervised_from_its_start_has_no_anchor_without_context():
    batch = packed_batch([[(0, 6), (0, 6)]], length=12)
    assert anchor_candidates(batch)[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 7, 8, 9, 10]


def test_anchors_are_distinct_ascending_candidates():
    batch = batch_with_hole()
    candidates = anchor_candidates(batch)
    for seed in range(20):
        anchors, valid = draw_anchors(batch, num_anchors=9, generator=seeded_generator(seed, 0))
        assert anchors.shape == valid.shape == (3, 9)
        for b in range(3):
            row = anchors[b][valid[b]].tolist()
            assert row == sorted(set(row))
            assert candidates[b, row].all()
        assert valid.sum(1).tolist() == [9, 9, 0]
        assert (anchors[~valid] == 0).all()


def test_rows_with_too_few_candidates_use_all_of_them():
    batch = batch_with_hole()
    anchors, valid = draw_anchors(batch, num_anchors=100, generator=seeded_generator(0))
    for b, row in enumerate(anchor_candidates(batch)):
        assert anchors[b][valid[b]].tolist() == row.nonzero()[:, 0].tolist()
        assert valid[b].tolist() == sorted(valid[b].tolist(), reverse=True)  # invalid ones stand at the end


def test_chunks_begin_at_each_response_and_every_block_from_there():
    batch = packed_batch([[(2, 9), (3, 4)], [(0, 10)]], length=18)
    found = chunk_anchors(batch, block_size=4)
    assert [row.nonzero()[:, 0].tolist() for row in found] == [
        [2, 6, 14],
        [1, 5],
    ]  # candidates end before the last token
    assert chunk_anchors(batch, block_size=1).equal(random_anchors(batch, block_size=4))
    anchors, valid = draw_anchors(batch, num_anchors=3, generator=seeded_generator(0), candidates_BS=found)
    assert anchors[0].tolist() == [2, 6, 14] and valid[1].tolist() == [True, True, False]


def repeating_batch() -> TokenBatch:
    """Three documents of few different tokens, two of them in one row."""
    ids = torch.randint(0, 3, (2, 40), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 25 + [1] * 15, [0] * 36 + [-1] * 4])
    positions = torch.tensor([[*range(25), *range(15)], range(40)])
    return TokenBatch(ids, documents, positions, documents >= 0)


def test_repeated_ngrams_are_those_that_their_own_document_has_begun_before():
    batch = repeating_batch()
    for ngram in (1, 2, 3):
        expected = torch.zeros(2, 40, dtype=torch.bool)
        for b, bounds in enumerate([[(0, 25), (25, 40)], [(0, 36), (36, 40)]]):
            for start, end in bounds:
                seen = set()
                for s in range(start, end - ngram + 1):
                    gram = tuple(batch.ids_BS[b, s : s + ngram].tolist())
                    expected[b, s] = gram in seen
                    seen.add(gram)
        assert torch.equal(repeated_ngrams(batch, ngram=ngram), expected), ngram
        assert bool(expected.any()) and not bool(expected.all())
    assert not repeated_ngrams(batch, ngram=50).any(), "no n-gram is longer than its row"


def test_novel_anchors_keep_what_is_news_and_thin_out_the_rest():
    batch = repeating_batch()
    candidates, repeated = anchor_candidates(batch), repeated_ngrams(batch, ngram=2)
    found = novel_anchors(batch, block_size=4, ngram=2, thinning=5)
    assert torch.equal(found & ~repeated, candidates & ~repeated)
    kept, thinned = (found & repeated).sum(), (candidates & repeated).sum()
    assert 0 < kept < thinned / 3
    assert torch.equal(novel_anchors(batch, block_size=4, ngram=2, thinning=1), candidates)


def test_anchors_depend_on_the_generators_key_alone():
    batch = batch_with_hole()
    draws = []
    for key in ((1, 7), (1, 7), (1, 8), (17,)):
        torch.manual_seed(len(draws))
        draws.append(draw_anchors(batch, num_anchors=6, generator=seeded_generator(*key))[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


def test_every_candidate_is_drawn_equally_often():
    batch = packed_batch([[(4, 21)]], length=25)
    counts = torch.zeros(25)
    for k in range(2000):
        anchors, _ = draw_anchors(batch, num_anchors=5, generator=seeded_generator(0, k))
        counts[anchors[0]] += 1
    expected = 2000 * 5 / 20
    assert counts.nonzero()[:, 0].tolist() == list(range(4, 24))
    assert (counts[4:24] - expected).abs().max() < 5 * expected**0.5


def test_blocks_hold_anchor_masks_labels_and_positions_in_place():
    batch = batch_with_hole()
    anchors, valid = draw_anchors(batch, num_anchors=100, generator=seeded_generator(0))
    blocks = make_blocks(batch, anchors, valid, block_size=5, mask_token_id=MASK)
    for b, i in valid.nonzero().tolist():
        a = int(anchors[b, i])
        assert blocks.input_ids_BAK[b, i].tolist() == [int(batch.ids_BS[b, a]), *[MASK] * 4]
        # Positions restart with each document, and go on past the row's end.
        assert blocks.positions_BAK[b, i].tolist() == [int(batch.positions_BS[b, a]) + k for k in range(5)]
        for k in range(5):
            assert blocks.index_BAK[b, i, k] == min(a + k, 39)
            if a + k < 40:  # slot k's label is the token at anchor + k, not the one behind it
                assert blocks.labels_BAK[b, i, k] == batch.ids_BS[b, a + k]


def test_the_label_mask_stops_at_the_first_hole_border_or_end():
    batch = batch_with_hole()
    anchors, valid = draw_anchors(batch, num_anchors=100, generator=seeded_generator(0))
    blocks = make_blocks(batch, anchors, valid, block_size=6, mask_token_id=MASK)
    seen = set()
    for b in range(3):
        for i in range(anchors.shape[1]):
            a, expected, alive = int(anchors[b, i]), [False], bool(valid[b, i])
            for k in range(1, 6):
                alive = alive and a + k < 40 and bool(batch.supervised_BS[b, a + k])
                alive = alive and bool(batch.documents_BS[b, a + k] == batch.documents_BS[b, a])
                expected.append(alive)
            assert blocks.label_mask_BAK[b, i].tolist() == expected, (b, a)
            seen.add(sum(expected))
    assert seen == {0, 1, 2, 3, 4, 5}  # short tails are there, of every length


def test_a_hole_inside_a_block_hides_what_follows_it():
    batch = batch_with_hole()  # tokens 20, 21, 22 of row 1 are not supervised, 23 and 24 are
    anchors = torch.tensor([[0], [18], [0]])
    blocks = make_blocks(batch, anchors, torch.tensor([[False], [True], [False]]), block_size=8, mask_token_id=MASK)
    assert blocks.label_mask_BAK[1, 0].tolist() == [False, True, *[False] * 6]


def test_block_size_one_has_nothing_to_predict():
    batch = batch_with_hole()
    anchors, valid = draw_anchors(batch, num_anchors=3, generator=seeded_generator(0))
    blocks = make_blocks(batch, anchors, valid, block_size=1, mask_token_id=MASK)
    assert blocks.input_ids_BAK.shape == (3, 3, 1)
    assert not blocks.label_mask_BAK.any()
