"""A draft that goes left to right: causal in training, the same in decoding, exact, as large as a block draft."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_sampling
import torch
from taught import teach
from test_sampling import small  # noqa: F401 (a fixture)
from toys import MASK, packed_batch, plain_batch, random_prompts, stir, tiny_draft, tiny_target

from dflash.blocks import draw_anchors, make_blocks, seeded_generator
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.proposer import proposer_of
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Adaptive, DDTree, Match, Rejection, measure_proposing
from dflash.draft.attention import Dense, Flex, TwoPiece, Windowed
from dflash.draft.draft import Draft
from dflash.draft.heads.shapes import markov_head
from dflash.draft.layout import alternating_layout, full_layout
from dflash.draft.mask import block_geometry
from dflash.draft.shape import DraftShape, shape_draft
from dflash.draft.stepping import Stepper
from dflash.draft.taps import explicit_taps
from dflash.evaluation.acceptance import chain_walk

LAYOUTS = {"full": full_layout(), "alternating": alternating_layout(window=7)}
LENGTH, BLOCK = 40, 6


def step_draft(target, *, layout="full", block_size: int = BLOCK, depth: int = 2) -> Draft:
    like = tiny_draft(target, block_size=block_size, depth=depth, layout=LAYOUTS[layout])
    draft = Draft(replace(like.shape, left_to_right=True)).eval()
    draft.load_state_dict(like.state_dict())
    return draft


def packed_inputs(target, draft):
    batch = packed_batch([[(4, 14), (2, 15)], [(1, 39)], [(30, 1)]], length=LENGTH)
    anchors, valid = draw_anchors(batch, num_anchors=12, generator=seeded_generator(0, 1))
    blocks = make_blocks(batch, anchors, valid, block_size=BLOCK, mask_token_id=MASK)
    taps = target.features(batch, draft.shape.taps).taps_BSTH
    return blocks, (target.embed(draft.inputs(blocks)), taps, block_geometry(batch, blocks))


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_ways_to_attend_agree_and_no_slot_sees_its_own_token_or_those_behind_it(layout):
    target = tiny_target("gpt_oss")
    draft = step_draft(target, layout=layout, depth=3)
    blocks, inputs = packed_inputs(target, draft)
    found = {}
    for attention in (TwoPiece(), Dense(), Windowed(), Flex(compile=False)):
        draft.attention = attention
        found[type(attention)] = draft(*inputs)
        for slot in range(1, BLOCK):
            changed = inputs[0].clone()
            changed[:, :, slot:] += 1.0
            same = draft(changed, *inputs[1:])
            valid = blocks.valid_BA
            torch.testing.assert_close(same[valid][:, : slot + 1], found[type(attention)][valid][:, : slot + 1])
            if slot + 1 < BLOCK:
                behind = [states[valid][:, slot + 1] for states in (same, found[type(attention)])]
                assert not torch.allclose(*behind)
    for way in (Dense, Windowed, Flex):
        valid = blocks.valid_BA
        torch.testing.assert_close(found[way][valid], found[TwoPiece][valid], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_training_equals_decoding_in_a_ragged_batch(layout):
    target = tiny_target("gpt_oss")
    draft = step_draft(target, layout=layout, depth=3)
    ids = torch.randint(0, MASK, (3, LENGTH), generator=torch.Generator().manual_seed(3))
    batch = plain_batch(ids)
    anchors = torch.arange(LENGTH).expand(3, LENGTH)
    valid = torch.ones_like(anchors, dtype=torch.bool)
    blocks = make_blocks(batch, anchors, valid, block_size=BLOCK, mask_token_id=MASK)
    taps = target.features(batch, draft.shape.taps).taps_BSTH
    hidden = draft(target.embed(draft.inputs(blocks)), taps, block_geometry(batch, blocks))
    session, at = draft.open(3, capacity=LENGTH + BLOCK), [0, 0, 0]
    for step in ([9, 4, 13], [1, 5, 3], [6, 7, 0], [4, 4, 4]):
        chunk = torch.stack([taps[b, i : i + 14] for b, i in enumerate(at)])
        at = [i + count for i, count in zip(at, step, strict=True)]
        session.extend(chunk, torch.tensor(step), lengths=at)
        stepper = Stepper(session)
        for slot in range(1, BLOCK):
            tokens = torch.stack([ids[b, i + slot - 1] for b, i in enumerate(at)])
            found = stepper.step(target.embed(tokens[:, None]))[:, 0]
            expected = torch.stack([hidden[b, i, slot] for b, i in enumerate(at)])
            torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("verifier", [Match(), Rejection(), Adaptive(threshold=0.02)], ids=lambda v: v.name)
@pytest.mark.parametrize("block_size", [1, 2, 5, 9])
def test_greedy_output_is_the_targets_and_the_chain_walk_foretells_it(block_size, verifier):
    target = tiny_target("gpt_oss")
    prompts = random_prompts((3, 11, 7, 20))
    plain, _ = AutoregressiveDecoder(target).generate(prompts, max_new_tokens=24)
    outputs = [list(trace.tokens) for trace in plain]
    draft = taught_draft(target, [[*p, *o] for p, o in zip(prompts, outputs, strict=True)])
    traces, _ = SpeculativeDecoder(target, draft, block_size=block_size, verifier=verifier).generate(
        prompts, max_new_tokens=24
    )
    assert [list(trace.tokens) for trace in traces] == outputs
    if verifier.whole_chain:
        assert chain_walk(target, draft, prompts, outputs, block_size=block_size) == [t.lengths for t in traces]
    if block_size > 2:
        assert len({length for trace in traces for length in trace.lengths}) > 2


_TAUGHT: dict[int, Draft] = {}


def taught_draft(target, sequences) -> Draft:
    """Taught once: the same target and texts in every test."""
    if not _TAUGHT:
        _TAUGHT[0] = teach(target, step_draft(target, layout="alternating"), sequences, steps=25)
    return _TAUGHT[0]


def test_sampled_output_repeats_the_targets():
    target = tiny_target("gpt_oss")
    prompts, sampling = random_prompts((3, 11, 7)), Sampling(temperature=1.0, seed=5)
    plain, _ = AutoregressiveDecoder(target, sampling=sampling).generate(prompts, max_new_tokens=20)
    traces, _ = SpeculativeDecoder(target, step_draft(target), sampling=sampling).generate(prompts, max_new_tokens=20)
    assert [trace.tokens for trace in traces] == [trace.tokens for trace in plain]


def test_rejection_sampling_has_the_targets_joint_distribution(small):  # noqa: F811
    draft = step_draft(small[0], block_size=4)
    stir(draft)
    assert abs(test_sampling.deviation((small[0], draft, *small[2:]), Rejection())) < 3.5


def test_it_has_the_parameters_of_a_block_draft_and_costs_a_pass_a_slot():
    target = tiny_target("qwen3")
    block, steps = tiny_draft(target, block_size=8), step_draft(target, block_size=8)
    assert {k: v.shape for k, v in block.state_dict().items()} == {k: v.shape for k, v in steps.state_dict().items()}
    passes = []
    norm = steps.norm.register_forward_hook(lambda *args: passes.append(1))
    measure_proposing(target, proposer_of(steps), batch_size=1, block_size=8)
    norm.remove()
    assert len(passes) == 7 * 7  # seven walks, four of them to warm up


def test_its_shape_survives_being_stored_and_mistakes_are_named():
    target = tiny_target("qwen3")
    shape = step_draft(target).shape
    assert DraftShape.from_dict(shape.to_dict()) == shape
    assert "left_to_right" not in tiny_draft(target).shape.to_dict()
    options = {"depth": 1, "block_size": 8, "taps": explicit_taps(layers=(0,)), "layout": full_layout()}
    with pytest.raises(ValueError, match=r"draft\.left_to_right=true with a markov head: .*choose heads=none"):
        shape_draft(target.dims, mask_token_id=0, left_to_right=True, head=markov_head(rank=4), **options)
    with pytest.raises(ValueError, match=r"verify=ddtree: trees grow over slots drafted all at once"):
        SpeculativeDecoder(target, step_draft(target), verifier=DDTree())
