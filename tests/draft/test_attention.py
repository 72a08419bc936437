"""Training attention: three ways to compute one thing, and the one thing checked against a plain triple loop."""

from __future__ import annotations

import pytest
import torch
from toys import MASK, packed_batch, tiny_draft, tiny_target

from dflash.blocks import draw_anchors, make_blocks, seeded_generator
from dflash.draft.attention import Dense, Flex, Near, TwoPiece, Windowed
from dflash.draft.layout import alternating_layout, full_layout, sliding_layout
from dflash.draft.mask import block_geometry, context_mask, dense_mask

LAYOUTS = {"full": full_layout(), "sliding": sliding_layout(window=6), "alternating": alternating_layout(window=6)}
BLOCK = 5


def packed():
    """Two documents and padding; one long document; a row with no anchor at all."""
    batch = packed_batch([[(4, 14), (2, 15)], [(1, 39)], [(30, 1)]], length=40)
    anchors, valid = draw_anchors(batch, num_anchors=14, generator=seeded_generator(0, 1))
    assert not valid[2].any()
    anchors[1, -1], anchors[0, -1] = 38, 33  # short tails: at the row's end, and at a document's end
    return batch, make_blocks(batch, anchors, valid, block_size=BLOCK, mask_token_id=MASK)


def draft_and_inputs(layout: str, family: str = "gpt_oss"):
    target = tiny_target(family)
    draft = tiny_draft(target, block_size=BLOCK, depth=3, layout=LAYOUTS[layout])
    batch, blocks = packed()
    taps = target.features(batch, draft.shape.taps).taps_BSTH
    return draft, blocks, (target.embed(blocks.input_ids_BAK), taps, block_geometry(batch, blocks))


def sees(batch, blocks, b: int, block: int, slot: int, s: int, window: int | None) -> bool:
    """A block sees context strictly before its anchor, of its own document; with a window, slot i of a block at a
    sees positions from a + i - (window - 1) on. An invalid block sees no context."""
    if not blocks.valid_BA[b, block]:
        return False
    anchor = int(blocks.anchors_BA[b, block])
    if s >= anchor or batch.documents_BS[b, s] != batch.documents_BS[b, anchor]:
        return False
    return window is None or s >= anchor + slot - (window - 1)


@pytest.mark.parametrize("window", [None, 1, 3, 6])
def test_masks_equal_a_triple_loop(window):
    batch, blocks = packed()
    geometry = block_geometry(batch, blocks)
    B, A, S = *blocks.anchors_BA.shape, batch.ids_BS.shape[1]
    context = context_mask(geometry, window).expand(B, A, BLOCK, S)
    dense = dense_mask(geometry, window)
    assert dense.shape == (B, A * BLOCK, S + A * BLOCK)
    for b in range(B):
        for a in range(A):
            for k in range(BLOCK):
                expected = [sees(batch, blocks, b, a, k, s, window) for s in range(S)]
                assert context[b, a, k].tolist() == expected, (b, a, k)
                expected += [other == a for other in range(A) for _ in range(BLOCK)]
                assert dense[b, a * BLOCK + k].tolist() == expected, (b, a, k)


@pytest.mark.parametrize("family", ["gpt_oss", "qwen3"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", [TwoPiece, Windowed])
def test_every_form_equals_the_dense_one_in_value_and_gradient(form, layout, family):
    draft, _, inputs = draft_and_inputs(layout, family)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(4))
    values, gradients = [], []
    for attention in (form(), Dense()):
        draft.attention = attention
        draft.zero_grad()
        noise = inputs[0].clone().requires_grad_()
        taps = inputs[1].clone().requires_grad_()
        hidden = draft(noise, taps, inputs[2])
        (hidden * weight).sum().backward()
        values.append(hidden.detach())
        gradients.append([noise.grad, taps.grad, *(p.grad.clone() for p in draft.parameters())])
    torch.testing.assert_close(*values, atol=2e-5, rtol=1e-5)
    for found, dense in zip(*gradients, strict=True):
        scale = float(dense.abs().max())
        torch.testing.assert_close(found / scale, dense / scale, atol=3e-5, rtol=1e-4)


def test_windows_are_gathered_where_that_scores_fewer_keys():
    """At half of the keys that the dense form scores."""
    geometry = draft_and_inputs("alternating")[2][2]
    S, A = geometry.documents_BS.shape[1], geometry.anchors_BA.shape[1]
    most = (S + A * BLOCK) // 2 - BLOCK
    masks = Windowed().prepare(geometry, {None, 6, most, most + 1})
    assert {window for window, mask in masks.items() if isinstance(mask, Near)} == {6, most}
    assert masks[6].bias.shape[-1] == 6 + BLOCK


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_flex_equals_two_pieces(layout):
    draft, _, inputs = draft_and_inputs(layout)
    with torch.no_grad():  # on a CPU flex attention has no backward
        expected = draft(*inputs)
        draft.attention = Flex(compile=False)
        torch.testing.assert_close(draft(*inputs), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_bf16_stays_near_fp32():
    draft, _, inputs = draft_and_inputs("alternating")
    with torch.no_grad():
        expected = draft(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = draft(*inputs)
    assert (found.float() - expected).abs().mean() < 0.05 * expected.abs().mean()


@pytest.mark.parametrize("attention", [TwoPiece(), Windowed(), Dense()], ids=["two pieces", "windowed", "dense"])
@torch.no_grad()
def test_a_block_sees_the_past_of_its_own_document_and_nothing_else(attention):
    target = tiny_target("qwen3")
    draft = tiny_draft(target, block_size=BLOCK, layout=alternating_layout(window=6))
    draft.attention = attention
    batch, blocks = packed()
    geometry = block_geometry(batch, blocks)
    noise = target.embed(blocks.input_ids_BAK)
    before = draft(noise, target.features(batch, draft.shape.taps).taps_BSTH, geometry)
    for s in range(40):
        batch.ids_BS[:, s] += 1
        after = draft(noise, target.features(batch, draft.shape.taps).taps_BSTH, geometry)
        batch.ids_BS[:, s] -= 1
        for b, a in blocks.valid_BA.nonzero().tolist():
            change = (after[b, a] - before[b, a]).abs().amax(-1)
            if sees(batch, blocks, b, a, 0, s, None):
                assert change.min() > 1e-6, (b, a, s)
            else:
                assert torch.equal(after[b, a], before[b, a]), (b, a, s)


@torch.no_grad()
def test_blocks_never_see_each_other():
    draft, blocks, (noise, taps, geometry) = draft_and_inputs("full")
    before = draft(noise, taps, geometry)
    for changed in range(noise.shape[1]):
        other = noise.clone()
        other[:, changed, 2] += 1.0
        moved = (draft(other, taps, geometry) != before).any(-1)
        expected = torch.zeros_like(moved)
        expected[:, changed] = True  # every slot of the block itself: attention inside it goes both ways
        assert torch.equal(moved[blocks.valid_BA], expected[blocks.valid_BA])


@torch.no_grad()
def test_the_window_hides_what_is_far_back():
    """With sliding layers only, features beyond the window are unseen (tokens would reach on through the target)."""
    draft, blocks, (noise, taps, geometry) = draft_and_inputs("sliding")
    batch, _ = packed()
    before = draft(noise, taps, geometry)
    for s in range(40):
        other = taps.clone()
        other[:, s] += torch.randn(other[:, s].shape, generator=torch.Generator().manual_seed(s))
        after = draft(noise, other, geometry)
        for b, a in blocks.valid_BA.nonzero().tolist():
            # Through the block itself what slot 0 sees, the furthest back, reaches every slot in the next layer.
            assert torch.equal(after[b, a], before[b, a]) != sees(batch, blocks, b, a, 0, s, 6), (b, a, s)
