"""A head's part of the loss: its terms by hand, shares, and chunks that equal the whole, the head's gradient too."""

from __future__ import annotations

import pytest
import torch
from heads import HEADS, headed_draft
from toys import MASK, packed_batch, tiny_target

from dflash.blocks import draw_anchors, make_blocks, seeded_generator
from dflash.objective.heads import Candidates, Confidence, HeadLoss, read
from dflash.objective.objective import Objective
from dflash.objective.terms import CrossEntropy, ForwardKL
from dflash.objective.weights import dpace, uniform

LOSSES = {
    "markov": HeadLoss(),
    "dspark": HeadLoss({"confidence": (1.0, Confidence())}),
    "gru": HeadLoss(base_share=[1, 0]),
    "selector": HeadLoss({"candidates": (1.0, Candidates())}, base_share=[1, 1]),
}


ROWS = [[(4, 14), (2, 15)], [(1, 39)], [(30, 1)]]
IDS = packed_batch(ROWS, length=40).ids_BS


@pytest.fixture(scope="module")
def case():
    """(target, hidden states, blocks, features): one row has no anchor."""
    target = tiny_target("qwen3")
    batch = packed_batch(ROWS, length=40)
    anchors, valid = draw_anchors(batch, num_anchors=6, generator=seeded_generator(0))
    blocks = make_blocks(batch, anchors, valid, block_size=5, mask_token_id=MASK)
    features = target.features(batch, (0,), with_last=True)
    hidden = torch.randn(*blocks.input_ids_BAK.shape, 32, generator=torch.Generator().manual_seed(2))
    return target, hidden, blocks, features


def loss_and_gradients(case, objective, head, *, progress: float = 0.25):
    target, hidden, blocks, features = case
    hidden = hidden.clone().requires_grad_()
    terms = objective(hidden, blocks, features, target, head=head, progress=progress)
    inputs = (hidden, *head.parameters())
    gradients = torch.autograd.grad(terms.numerator, inputs, allow_unused=True)
    return terms, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]


@pytest.mark.parametrize("name", HEADS)
def test_chunks_equal_the_whole_and_reach_the_head(case, name):
    head = headed_draft(case[0], name).head
    options = {"heads": LOSSES[name]}
    found = []
    for chunk_blocks in (1000, 2):
        objective = Objective({"ce": (1.0, CrossEntropy())}, dpace(), chunk_blocks=chunk_blocks, **options)
        found.append(loss_and_gradients(case, objective, head))
    (whole, expected), (terms, gradients) = found
    torch.testing.assert_close(terms.numerator, whole.numerator)
    torch.testing.assert_close(gradients, expected)
    assert all(bool(gradient.any()) for gradient in gradients), "something of the head is not trained"
    assert LOSSES[name].needs_target == (name == "dspark")


@pytest.mark.parametrize("name", ["markov", "gru"])
@torch.no_grad()
def test_a_head_is_given_the_tokens_before_each_slot_and_never_the_label(case, name):
    """By plain loops over the rows: what stands right before slot k is the data's token at anchor + k - 1."""
    target, hidden, blocks, features = case
    head = headed_draft(target, name).head
    terms = Objective({"ce": (1.0, CrossEntropy())}, uniform())(hidden, blocks, features, target, head=head)
    total = 0.0
    for b, a in blocks.valid_BA.nonzero().tolist():
        anchor, memory = int(blocks.anchors_BA[b, a]), None
        for k in range(1, int(blocks.label_mask_BAK[b, a].sum()) + 1):
            before = IDS[b, anchor + k - 1]
            memory = head.follow(memory, before[None], target.embed)
            logits = head.correct(target.logits(hidden[b, a, k])[None], hidden[b, a, k][None], memory)
            total -= float(logits.log_softmax(-1)[0, IDS[b, anchor + k]])
    assert float(terms.numerator) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("progress", "with_head"), [(0.0, False), (1.0, True)])
def test_the_share_without_the_head_goes_from_one_to_none(case, progress, with_head):
    head = headed_draft(case[0], "gru").head
    objective = Objective({"kl": (1.0, ForwardKL())}, uniform(), heads=LOSSES["gru"])
    terms, gradients = loss_and_gradients(case, objective, head, progress=progress)
    target, hidden, blocks, features = case
    plain = Objective({"kl": (1.0, ForwardKL())}, uniform())
    without = plain(hidden, blocks, features, target).numerator
    alone = plain(hidden, blocks, features, target, head=head).numerator.detach()
    assert abs(float(without - alone)) > 1e-2
    torch.testing.assert_close(terms.numerator.detach(), alone if with_head else without)
    assert any(bool(gradient.any()) for gradient in gradients[1:]) == with_head
    middle, _ = loss_and_gradients(case, objective, head, progress=0.5)
    torch.testing.assert_close(middle.numerator.detach(), (without + alone) / 2)


def reading_of(case, name: str):
    """(reading, base logits, labels) of a few slots, labels among the likeliest and not."""
    target, hidden, blocks, _ = case
    head = headed_draft(target, name).head
    flat = hidden[blocks.valid_BA][:, 1:]
    labels = blocks.labels_BAK[blocks.valid_BA]
    base = target.logits(flat)
    mine = labels[:, 1:].clone()
    mine[::2] = base.argmax(-1)[::2]
    return read(head, base, flat, labels[:, :-1], target.embed), base, mine


@torch.no_grad()
def test_candidates_are_those_of_the_selector_and_nothing_else(case):
    reading, base, labels = reading_of(case, "selector")
    found = Candidates()(reading, labels, None)
    head, seen = reading.head, set()
    for m in range(len(labels)):
        for p in range(labels.shape[1]):
            ids = base[m, p].topk(6).indices.tolist()
            label = int(labels[m, p])
            seen.add(label in ids)
            context = reading.memory_MPG[m, p] * head.hidden_projection(reading.hidden_MPH[m, p])
            scores = torch.stack([base[m, p, i] + context @ head.embed_successor.weight[i] for i in ids])
            expected = -scores.log_softmax(0)[ids.index(label)] if label in ids else torch.tensor(0.0)
            torch.testing.assert_close(found[m, p], expected, atol=1e-5, rtol=1e-4)
    assert seen == {True, False}


def test_confidence_is_held_against_the_overlap_of_draft_and_target(case):
    reading, base, labels = reading_of(case, "dspark")
    target_MPV = base.detach().roll(1, 0) * 1.5
    found = Confidence()(reading, labels, target_MPV)
    overlap = torch.minimum(reading.logits_MPV.exp(), target_MPV.softmax(-1)).sum(-1).detach()
    told = reading.head.confidence(reading.hidden_MPH, reading.memory_MPG).sigmoid()
    expected = -(overlap * told.log() + (1 - overlap) * (1 - told).log())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert 0.01 < float(overlap.mean()) < 0.99
    gradient = torch.autograd.grad(found.sum(), reading.head.lm_head.weight, allow_unused=True)[0]
    assert gradient is None or not gradient.any(), "the confidence may not pull the draft towards being judged well"


def test_mistakes_are_told(case):
    with pytest.raises(ValueError, match=r"objective\.heads\.base_share=\[0, 2\]: give the first and the last share"):
        HeadLoss(base_share=[0, 2])
    reading, _, labels = reading_of(case, "markov")
    with pytest.raises(ValueError, match=r"this head has no confidence; set heads=dspark"):
        Confidence()(reading, labels, reading.logits_MPV)
