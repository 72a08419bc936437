"""Heads: nothing at initialisation, and the same logits for the same tokens in training, in a walk and in a tree."""

from __future__ import annotations

import json

import pytest
import torch
from heads import HEADS, headed_draft
from toys import tiny_draft, tiny_target

from dflash.draft.draft import Draft
from dflash.draft.heads.shapes import gru_head, head_from_dict, markov_head, selector_head
from dflash.draft.heads.slots import LinkedSlots, Slots, likeliest, make_slots
from dflash.draft.shape import DraftShape

ROWS, SLOTS = 3, 5


@pytest.fixture(scope="module")
def target():
    return tiny_target("gpt_oss")


def inputs(target, *, seed: int = 0):
    """(logits, hidden, anchors, tokens) of a few blocks."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, SLOTS, target.dims.hidden_size, generator=generator)
    ids = torch.randint(0, 63, (ROWS, SLOTS + 1), generator=generator)
    return target.logits(hidden), hidden, ids[:, 0], ids[:, 1:]


def linked(draft, target, *, seed: int = 0) -> tuple[LinkedSlots, torch.Tensor, torch.Tensor]:
    """(slots, some tokens for them, teacher-forced logits of all slots given those tokens)."""
    logits, hidden, anchors, tokens = inputs(target, seed=seed)
    previous = torch.cat([anchors[:, None], tokens[:, :-1]], dim=1)
    expected = draft.correct(logits, hidden, previous, target.embed)
    return make_slots(draft.head, logits, hidden, anchors, target.embed), tokens, expected


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_fresh_head_changes_no_choice_and_no_body(target, name):
    draft, plain = headed_draft(target, name, stirred=False), tiny_draft(target)
    for key, value in plain.state_dict().items():
        assert torch.equal(draft.state_dict()[key], value)
    slots, _, corrected = linked(draft, target)
    open_tokens = corrected.isfinite()
    assert torch.equal(corrected[open_tokens], slots.logits_BDV[open_tokens])
    walk = slots.walk(lambda logits, part: logits.argmax(-1))
    assert torch.equal(walk.tokens_BD, slots.logits_BDV.argmax(-1))
    assert bool(open_tokens.all()) != draft.shape.head.restricts


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_walk_has_the_logits_of_teacher_forcing(target, name):
    draft = headed_draft(target, name)
    slots, tokens, expected = linked(draft, target)
    walk = slots.walk(lambda logits, part: tokens[:, part])
    assert torch.equal(walk.tokens_BD, tokens)
    torch.testing.assert_close(walk.logits_BDV, expected, atol=2e-5, rtol=1e-5)
    assert (walk.confidence_BD is not None) == draft.shape.head.confident
    changed = (expected - slots.logits_BDV).abs().amax(-1)
    assert bool((changed > 0.05).all()), "a stirred head must change every slot"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_greedy_walk_is_the_walk_by_argmax(target, name, seed):
    """Also where the head has a shorter way, and then what a token was chosen from is the candidates' part."""
    slots, _, _ = linked(headed_draft(target, name), target, seed=seed)
    short, plain = slots.walk(likeliest), slots.walk(lambda logits, part: logits.argmax(-1))
    assert torch.equal(short.tokens_BD, plain.tokens_BD)
    for a, b in zip(short.logits_BDV.flatten(0, 1), plain.logits_BDV.flatten(0, 1), strict=True):
        found, expected = a.sort(descending=True).values, b[b.isfinite()].sort(descending=True).values
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert name != "selector" or short.logits_BDV.shape[-1] == 6, "the shorter way was not gone"


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_slot_depends_on_the_tokens_before_it_and_on_no_other(target, name):
    draft = headed_draft(target, name)
    logits, hidden, anchors, tokens = inputs(target)
    previous = torch.cat([anchors[:, None], tokens[:, :-1]], dim=1)
    before = draft.correct(logits, hidden, previous, target.embed)
    other = previous.clone()
    other[:, 2] = (other[:, 2] + 1) % 63
    moved = (draft.correct(logits, hidden, other, target.embed) != before).any(-1).any(0).tolist()
    reach = 3 if name == "gru" else 1  # a GRU remembers the block, the others one token
    assert moved == [2 <= slot < 2 + reach for slot in range(SLOTS)]


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_paths_of_a_tree_have_the_logits_of_teacher_forcing(target, name):
    """Two paths a row that part at the second slot, kept in the other order from there on."""
    draft = headed_draft(target, name)
    slots, first, expected = linked(draft, target)
    second = first.clone()
    second[:, 1:] = (second[:, 1:] + 5) % 63
    anchors = slots.anchor_B[:, None]
    others = draft.correct(
        slots.logits_BDV, slots.hidden_BDH, torch.cat([anchors, second[:, :-1]], dim=1), target.embed
    )
    memory, paths = slots.begin(), torch.zeros(ROWS, 2, dtype=torch.long)
    for slot in range(SLOTS):
        found = slots.logits_at(slot, memory)
        torch.testing.assert_close(found[:, 0], (others if slot > 1 else expected)[:, slot], atol=2e-5, rtol=1e-5)
        if slot > 1:
            torch.testing.assert_close(found[:, 1], expected[:, slot], atol=2e-5, rtol=1e-5)
        chosen = torch.stack([second[:, slot], first[:, slot]], dim=1)
        memory = slots.follow(memory, paths, chosen)
        paths = torch.tensor([0, 1]).expand(ROWS, 2)
    assert not torch.equal(others, expected)


@torch.no_grad()
def test_confidence_depends_on_the_state_and_on_the_token_before(target):
    draft = headed_draft(target, "dspark")
    slots, tokens, _ = linked(draft, target)
    told = slots.walk(lambda logits, part: tokens[:, part]).confidence_BD
    assert bool(((told > 0) & (told < 1)).all()) and len(told.unique()) == told.numel()
    changed = tokens.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 63
    again = slots.walk(lambda logits, part: changed[:, part]).confidence_BD
    assert (again != told).any(0).tolist() == [False, False, True, False, False]
    fresh = linked(headed_draft(target, "dspark", stirred=False), target)[0]
    assert fresh.walk(lambda logits, part: logits.argmax(-1)).confidence_BD.unique().tolist() == [0.5]


def test_without_a_head_or_a_slot_slots_are_plain(target):
    logits, hidden, anchors, _ = inputs(target)
    head = headed_draft(target, "gru").head
    assert type(make_slots(None, logits, hidden, anchors, target.embed)) is Slots
    assert type(make_slots(head, logits[:, :0], hidden[:, :0], anchors, target.embed)) is Slots


@pytest.mark.parametrize("name", HEADS)
def test_a_head_survives_json_and_is_rebuilt(target, name):
    draft = headed_draft(target, name)
    shape = DraftShape.from_dict(json.loads(json.dumps(draft.shape.to_dict())))
    assert shape == draft.shape and shape.variations["head"]["rank"] == 5
    Draft(shape).load_state_dict(draft.state_dict())
    assert draft.num_head_parameters == draft.num_parameters - tiny_draft(target).num_parameters > 0


def test_a_plain_draft_is_stored_as_ever_and_unknown_heads_are_refused(target):
    values = tiny_draft(target).shape.to_dict()
    assert "head" not in values and DraftShape.from_dict(values).head is None
    with pytest.raises(ValueError, match=r"draft\.head=oracle: no head of this version, which has markov, gru"):
        head_from_dict({"name": "oracle"})
    with pytest.raises(ValueError, match="this draft has telepathy, which this version does not know"):
        DraftShape.from_dict(values | {"telepathy": True})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: markov_head(rank=0), r"draft\.head\.rank=0: must be at least 1"),
        (lambda: gru_head(state_size=0), r"draft\.head\.state_size=0: must be at least 1"),
        (lambda: selector_head(top_k=0), r"draft\.head\.top_k=0: must be at least 1"),
        (lambda: selector_head(top_k=65)(32, 64), r"draft\.head\.top_k=65: must be at most the target's 64 tokens"),
    ],
)
def test_mistakes_name_key_value_and_bound(make, message):
    with pytest.raises(ValueError, match=message):
        make()
