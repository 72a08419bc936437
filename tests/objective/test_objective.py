"""The objective: chunks equal the whole, the whole equals plain loops, masked slots count for nothing."""

from __future__ import annotations

import itertools
import math
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toys import MASK, packed_batch, tiny_target

from dflash.blocks import draw_anchors, make_blocks, seeded_generator
from dflash.objective.objective import LABELS, NORMALISERS, Objective
from dflash.objective.terms import CrossEntropy, ForwardKL
from dflash.objective.weights import decay, dpace, uniform

TERMS = {
    "ce": {"cross_entropy": (1.0, CrossEntropy())},
    "kl": {"forward_kl": (1.0, ForwardKL())},
    "both": {"cross_entropy": (0.3, CrossEntropy()), "forward_kl": (0.7, ForwardKL(temperature=2.0))},
}
WEIGHTINGS = {"uniform": uniform(), "decay": decay(), "decay 2": decay(gamma=2.0), "dpace": dpace(alpha=0.3)}


@pytest.fixture(scope="module")
def case():
    """(hidden, blocks, features, target): ragged rows, one of them without an anchor, holes and short tails."""
    target = tiny_target("qwen3", sharpness=20.0)
    batch = packed_batch([[(4, 14), (2, 15)], [(1, 39)], [(30, 1)]], length=40)
    batch.supervised_BS[1, 20:23] = False
    anchors, valid = draw_anchors(batch, num_anchors=11, generator=seeded_generator(0))
    blocks = make_blocks(batch, anchors, valid, block_size=6, mask_token_id=MASK)
    features = target.features(batch, (0,), with_last=True)
    hidden = torch.randn(*blocks.input_ids_BAK.shape, 32, generator=torch.Generator().manual_seed(2))
    return hidden, blocks, features, target


def weights_by_hand(name: str, confidence: list[float], counts: list[bool]) -> list[float]:
    """The formulas of the papers, slot by slot. ``counts``: whether slot k = 1, 2, ... is trained."""
    size = len(counts)
    if name == "uniform":
        return [float(good) for good in counts]
    if name.startswith("decay"):
        gamma = {"decay": 3.0, "decay 2": 2.0}[name]  # 3 = half of block size 6
        return [math.exp(-(k - 1) / gamma) if counts[k - 1] else 0.0 for k in range(1, size + 1)]
    survival, product = [], 1.0
    for good, q in zip(counts, confidence, strict=True):
        product *= 0.7 * q + 0.3 if good else 1.0
        survival.append(product if good else 0.0)
    return [sum(survival[k:]) if counts[k] else 0.0 for k in range(size)]


def loss_by_hand(hidden, blocks, features, target, *, terms: str, weighting: str, normalise: str, labels: str):
    """(numerator with gradient, denominator), block by block and slot by slot, over all logits at once."""
    logits = target.logits(hidden)
    target_logits = target.logits(features.last_BSH)
    numerator, weight_sum, tokens, num_blocks, rows = hidden.new_zeros(()), 0.0, 0, 0, set()
    for b, a in blocks.valid_BA.nonzero().tolist():
        rows.add(b)
        losses, confidence = [], []
        for k in range(1, 6):
            before = target_logits[b, blocks.index_BAK[b, a, k - 1]]
            label = int(before.argmax()) if labels == "target" else int(blocks.labels_BAK[b, a, k])
            log_q = logits[b, a, k].log_softmax(-1)
            confidence.append(float(log_q[label].detach().exp()))
            ce = -log_q[label]
            losses.append({"ce": ce, "kl": kl(before, logits[b, a, k], 1.0)}.get(terms))
            if terms == "both":
                losses[-1] = 0.3 * ce + 0.7 * kl(before, logits[b, a, k], 2.0)
        counts = blocks.label_mask_BAK[b, a, 1:].tolist()
        weights = weights_by_hand(weighting, confidence, counts)
        numerator = numerator + sum(w * x for w, x in zip(weights, losses, strict=True))
        weight_sum, tokens, num_blocks = weight_sum + sum(weights), tokens + sum(counts), num_blocks + any(counts)
    sums = {"weights": weight_sum, "tokens": tokens, "blocks": num_blocks, "sequences": len(rows)}
    return numerator, sums[normalise]


def kl(target, draft, temperature: float):
    p, q = (target / temperature).softmax(-1), (draft / temperature).softmax(-1)
    return (p * (p / q).log()).sum() * temperature**2


def run(case, *, terms: str, weighting: str, normalise: str = "weights", labels: str = "data", chunk_blocks: int = 64):
    """(LossTerms, gradient of the loss by the hidden states)."""
    hidden = case[0].clone().requires_grad_()
    objective = Objective(
        TERMS[terms], WEIGHTINGS[weighting], normalise=normalise, labels=labels, chunk_blocks=chunk_blocks
    )
    loss = objective(hidden, *case[1:])
    (loss.numerator / loss.denominator).backward()
    return loss, hidden.grad


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("normalise", NORMALISERS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("terms", TERMS)
def test_chunks_equal_the_whole_and_the_whole_equals_plain_loops(case, terms, weighting, normalise, labels):
    options = {"terms": terms, "weighting": weighting, "normalise": normalise, "labels": labels}
    hidden = case[0].clone().requires_grad_()
    numerator, denominator = loss_by_hand(hidden, *case[1:], **options)
    (numerator / denominator).backward()
    for chunk_blocks in (1, 3, 1000):
        loss, gradient = run(case, **options, chunk_blocks=chunk_blocks)
        torch.testing.assert_close(loss.numerator.detach(), numerator.detach(), atol=1e-4, rtol=1e-5)
        assert float(loss.denominator) == pytest.approx(float(denominator), rel=1e-5)
        torch.testing.assert_close(gradient, hidden.grad, atol=1e-6, rtol=1e-4)


def test_masked_slots_have_no_gradient_and_trained_ones_have(case):
    blocks = case[1]
    for terms, weighting in itertools.product(TERMS, WEIGHTINGS):
        _, gradient = run(case, terms=terms, weighting=weighting)
        trained = gradient.abs().amax(-1) > 0
        assert torch.equal(trained, blocks.label_mask_BAK)
    assert 0 < int(blocks.label_mask_BAK.sum()) < blocks.label_mask_BAK.numel()


def test_sums_count_what_their_names_say(case):
    hidden, blocks, _, target = case
    hidden = hidden.clone()
    # Every second block states its labels, row t of lm_head being what decodes to t.
    hidden[:, ::2] = target.lm_head.weight[blocks.labels_BAK[:, ::2]] * 50
    loss, _ = run((hidden, *case[1:]), terms="ce", weighting="decay", chunk_blocks=4)
    logits = target.logits(hidden)
    hits, prefixes, confidence = 0, 0, 0.0
    for b, a in blocks.valid_BA.nonzero().tolist():
        alive = True
        for k in range(1, 6):
            if blocks.label_mask_BAK[b, a, k]:
                label = blocks.labels_BAK[b, a, k]
                hit = bool(logits[b, a, k].argmax() == label)
                alive = alive and hit
                hits, prefixes = hits + hit, prefixes + alive
                confidence += float(logits[b, a, k].softmax(-1)[label])
    tokens = int(blocks.label_mask_BAK.sum())
    starts = int(blocks.label_mask_BAK[..., 1].sum())
    sums = {name: (float(n), float(d)) for name, (n, d) in loss.sums.items()}
    assert 0 < prefixes <= hits < tokens
    assert sums["accuracy"] == (hits, tokens)
    assert sums["correct_prefix_tokens"] == (prefixes, starts)
    assert sums["confidence"] == (pytest.approx(confidence, rel=1e-4), tokens)
    assert sums["loss"] == (float(loss.numerator.detach()), float(loss.denominator))
    assert not any(part.requires_grad for pair in loss.sums.values() for part in pair)


def test_kl_is_zero_where_the_draft_says_what_the_target_says(case):
    _, blocks, features, target = case
    before = blocks.index_BAK.clone()
    before[..., 1:] = blocks.index_BAK[..., :-1]
    hidden = torch.stack([features.last_BSH[b][before[b]] for b in range(len(before))])
    loss, gradient = run((hidden, blocks, features, target), terms="kl", weighting="uniform")
    assert abs(float(loss.numerator.detach())) < 1e-3
    assert gradient.abs().max() < 1e-6
    assert run(case, terms="kl", weighting="uniform")[0].numerator.detach() > 1


def test_without_any_anchor_the_gradient_is_zero_and_not_absent(case):
    hidden, blocks, features, target = case
    empty = make_blocks(
        packed_batch([[(40, 0)]] * 3, length=40),
        blocks.anchors_BA,
        torch.zeros_like(blocks.valid_BA),
        block_size=6,
        mask_token_id=MASK,
    )
    hidden = hidden.clone().requires_grad_()
    loss = Objective(TERMS["both"], dpace())(hidden, empty, features, target)
    loss.numerator.backward()
    assert float(loss.numerator.detach()) == float(loss.denominator) == 0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


class Memory(TorchDispatchMode):
    """The bytes of the largest storage that any operation makes, views of what was there counted as that."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("chunk_blocks", [8, 20, 1000])
def test_memory_grows_with_the_chunk_and_not_with_the_blocks(terms, chunk_blocks):
    """Forward and backward make nothing larger than one chunk's logits, and keep no logits in between."""
    target = tiny_target("qwen3", vocab_size=4096)
    batch = packed_batch([[(4, 60)]] * 2, length=64)
    anchors, valid = draw_anchors(batch, num_anchors=40, generator=seeded_generator(0))
    blocks = make_blocks(batch, anchors, valid, block_size=8, mask_token_id=MASK)
    features = target.features(batch, (0,), with_last=True)
    hidden = torch.randn(2, 40, 8, 32, requires_grad=True)
    saved = []

    def pack(tensor):
        saved.append(weakref.ref(tensor))
        return tensor

    with Memory() as memory, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = Objective(TERMS[terms], decay(), chunk_blocks=chunk_blocks)(hidden, blocks, features, target)
        kept = [tensor for ref in saved if (tensor := ref()) is not None]
        assert kept and not [tensor.shape for tensor in kept if tensor.shape[-1:] == (4096,)]
        loss.numerator.backward()
    assert memory.largest == min(chunk_blocks, 80) * 7 * 4096 * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "mean"}, r"objective\.normalise='mean': choose one of weights, tokens, blocks, sequences"),
        ({"labels": "gold"}, r"objective\.labels='gold': choose one of data, target"),
        ({"chunk_blocks": 0}, r"objective\.chunk_blocks=0: must be at least 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(TERMS["ce"], uniform(), **options)
    with pytest.raises(ValueError, match=r"objective\.terms is empty"):
        Objective({}, uniform())
    with pytest.raises(ValueError, match=r"objective\.terms\.mine=\[half, \.\.\.\]: the coefficient must be a number"):
        Objective({"mine": ("half", CrossEntropy())}, uniform())


def test_the_target_is_read_only_where_it_is_needed():
    assert not Objective(TERMS["ce"], uniform()).needs_target
    assert Objective(TERMS["ce"], uniform(), labels="target").needs_target
    assert Objective(TERMS["both"], uniform()).needs_target
