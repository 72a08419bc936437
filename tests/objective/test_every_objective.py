"""Every option of conf/objective, as composed: chunks equal the whole, micro-batches equal the batch, masks hold."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
import yaml
from toys import MASK, packed_batch, tiny_target

from dflash.blocks import draw_anchors, make_blocks, seeded_generator
from dflash.compose import build
from dflash.compose.keys import CONF
from dflash.objective.objective import NORMALISERS, Objective
from dflash.types import AnchoredBlocks, TargetFeatures

OPTIONS = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))


@pytest.fixture(scope="module")
def case():
    """(hidden, blocks, features, target): some slots state their label, one row has a hole, one has no anchor."""
    target = tiny_target("qwen3", sharpness=20.0)
    batch = packed_batch([[(4, 14), (2, 15)], [(1, 39)], [(30, 1)], [(3, 30)]], length=40)
    batch.supervised_BS[1, 20:23] = False
    anchors, valid = draw_anchors(batch, num_anchors=9, generator=seeded_generator(0))
    blocks = make_blocks(batch, anchors, valid, block_size=6, mask_token_id=MASK)
    features = target.features(batch, (0,), with_last=True)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(*blocks.input_ids_BAK.shape, 32, generator=generator)
    right = torch.rand(blocks.labels_BAK.shape, generator=generator) < 0.6
    return torch.where(right[..., None], target.lm_head.weight[blocks.labels_BAK] * 4, hidden), blocks, features, target


def composed(option: str, **changes) -> Objective:
    node = yaml.safe_load((CONF / "objective" / f"{option}.yaml").read_text())
    return build(node | changes, "objective", Objective)


def summed(objective: Objective, hidden, blocks, features, target, parts: list[slice]):
    """(numerator, denominator, gradient of the loss by the hidden states), over micro-batches of rows."""
    hidden = hidden.clone().requires_grad_()
    numerator = denominator = 0.0
    for rows in parts:
        some = AnchoredBlocks(**{f.name: getattr(blocks, f.name)[rows] for f in fields(blocks)})
        few = TargetFeatures(features.taps_BSTH[rows], features.last_BSH[rows])
        loss = objective(hidden[rows], some, few, target)
        numerator, denominator = numerator + loss.numerator, denominator + loss.denominator
    (numerator / denominator).backward()
    return float(numerator.detach()), float(denominator), hidden.grad


@pytest.mark.parametrize("normalise", NORMALISERS)
@pytest.mark.parametrize("option", OPTIONS)
def test_neither_chunks_nor_micro_batches_change_the_loss(case, option, normalise):
    whole = summed(composed(option, normalise=normalise, chunk_blocks=1000), *case, [slice(None)])
    assert whole[0] > 0 and whole[1] > 0 and whole[2].abs().max() > 0
    for chunk_blocks, parts in (
        (1, [slice(None)]),
        (4, [slice(0, 1), slice(1, 4)]),
        (1000, [slice(0, 3), slice(3, 4)]),
    ):
        cut = summed(composed(option, normalise=normalise, chunk_blocks=chunk_blocks), *case, parts)
        assert cut[:2] == pytest.approx(whole[:2], rel=1e-5)
        torch.testing.assert_close(cut[2], whole[2], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("option", OPTIONS)
def test_only_slots_that_count_are_trained(case, option):
    blocks = case[1]
    _, _, gradient = summed(composed(option), *case, [slice(None)])
    trained = gradient.abs().amax(-1) > 0
    assert not (trained & ~blocks.label_mask_BAK).any()
    assert trained[..., 1][blocks.label_mask_BAK[..., 1]].all()  # the first slot is trained by every objective


def test_until_the_first_error_trains_no_slot_behind_it(case):
    hidden, blocks, _, target = case
    wrong = (target.logits(hidden).argmax(-1) != blocks.labels_BAK) & blocks.label_mask_BAK
    behind = wrong.long().cumsum(-1) - wrong.long() > 0
    trained = summed(composed("auf"), *case, [slice(None)])[2].abs().amax(-1) > 0
    assert torch.equal(trained, blocks.label_mask_BAK & ~behind)
    assert (blocks.label_mask_BAK & behind).any()
