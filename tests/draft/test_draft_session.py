"""Training equals decoding: a block's hidden states are those of a draft session at the same place."""

from __future__ import annotations

import pytest
import torch
from toys import MASK, plain_batch, tiny_draft, tiny_target

from dflash.blocks import make_blocks
from dflash.draft.layout import alternating_layout, full_layout, sliding_layout
from dflash.draft.mask import block_geometry
from dflash.types import TokenBatch

LAYOUTS = {"full": full_layout(), "sliding": sliding_layout(window=7), "alternating": alternating_layout(window=7)}
LENGTH = 40


def trained_states(target, draft, batch: TokenBatch):
    """(taps, noise, hidden) with every position an anchor."""
    anchors = torch.arange(LENGTH).expand(len(batch.ids_BS), LENGTH)
    valid = torch.ones_like(anchors, dtype=torch.bool)
    blocks = make_blocks(batch, anchors, valid, block_size=draft.shape.block_size, mask_token_id=MASK)
    taps = target.features(batch, draft.shape.taps).taps_BSTH
    noise = target.embed(blocks.input_ids_BAK)
    return taps, noise, draft(noise, taps, block_geometry(batch, blocks))


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3"])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_training_equals_decoding_in_a_ragged_batch(layout, family):
    target = tiny_target(family)
    draft = tiny_draft(target, block_size=6, depth=3, layout=LAYOUTS[layout])
    ids = torch.randint(0, MASK, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    taps, noise, hidden = trained_states(target, draft, plain_batch(ids))
    session = draft.open(3, capacity=LENGTH + 8)
    at = [0, 0, 0]
    # The prefill, then strides that stay ragged, and one after which all rows are equally long.
    for step in ([9, 4, 13], [1, 5, 3], [6, 2, 1], [4, 9, 3], [5, 2, 1], [3, 6, 6]):
        width = max(step) + 1  # one token more than any row keeps: what is rejected must leave no trace
        chunk = torch.stack([taps[b, i : i + width] for b, i in enumerate(at)])
        for b, count in enumerate(step):
            chunk[b, count:] = 100.0
        at = [i + count for i, count in zip(at, step, strict=True)]
        session.extend(chunk, torch.tensor(step), lengths=at)
        found = session.propose(torch.stack([noise[b, i] for b, i in enumerate(at)]))
        expected = torch.stack([hidden[b, i] for b, i in enumerate(at)])
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_positions_restart_with_each_document():
    """A block of a packed row's second document equals a session that holds this document alone."""
    target = tiny_target("gpt_oss")
    draft = tiny_draft(target, block_size=6, layout=alternating_layout(window=7))
    ids = torch.randint(0, MASK, (1, LENGTH), generator=torch.Generator().manual_seed(4))
    batch = plain_batch(ids)
    batch = TokenBatch(ids, (batch.positions_BS >= 15).long(), batch.positions_BS.clone(), batch.supervised_BS)
    batch.positions_BS[0, 15:] -= 15
    taps, noise, hidden = trained_states(target, draft, batch)
    session = draft.open(1, capacity=LENGTH)
    session.extend(taps[:, 15:32], torch.tensor([17]), lengths=[17])
    torch.testing.assert_close(session.propose(noise[:, 32]), hidden[:, 32], atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_select_keeps_the_rows_named():
    target = tiny_target("qwen3")
    draft = tiny_draft(target, block_size=6, layout=alternating_layout(window=7))
    ids = torch.randint(0, MASK, (3, LENGTH), generator=torch.Generator().manual_seed(5))
    taps, noise, hidden = trained_states(target, draft, plain_batch(ids))
    session = draft.open(3, capacity=LENGTH)
    session.extend(taps[:, :20], torch.tensor([20, 11, 16]), lengths=[20, 11, 16])
    session.select(torch.tensor([2, 1]), lengths=[16, 11])
    found = session.propose(torch.stack([noise[2, 16], noise[1, 11]]))
    torch.testing.assert_close(found, torch.stack([hidden[2, 16], hidden[1, 11]]), atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_a_smaller_block_may_be_decoded():
    target = tiny_target("qwen3")
    draft = tiny_draft(target, block_size=8)
    session = draft.open(1, capacity=20)
    session.extend(torch.randn(1, 5, 3, 32), torch.tensor([5]), lengths=[5])
    assert session.propose(torch.randn(1, 4, 32)).shape == (1, 4, 32)


def test_a_full_session_refuses_with_both_numbers():
    draft = tiny_draft(tiny_target("qwen3"))
    with pytest.raises(ValueError, match=r"11 tokens do not fit its capacity of 10"):
        draft.open(1, capacity=10).extend(torch.zeros(1, 11, 3, 32), torch.tensor([11]), lengths=[11])
