"""Training drafts with heads: all of them is trained, resumes bit for bit, and can start from a draft without."""

from __future__ import annotations

import pytest
import torch
from heads import HEADS

from dflash.decode.verify import Match
from dflash.draft.adopt import adopt
from dflash.draft.draft import Draft
from dflash.draft.shape import DraftShape
from dflash.evaluation.measure import measure
from dflash.objective.heads import Candidates, Confidence, HeadLoss
from dflash.training.checkpoint import load_draft
from tests.training.conftest import fit, make_setup, weights

LOSSES = {
    "markov": lambda: HeadLoss(),
    "dspark": lambda: HeadLoss({"confidence": (1.0, Confidence())}),
    "gru": lambda: HeadLoss(base_share=[1, 0]),
    "selector": lambda: HeadLoss({"candidates": (1.0, Candidates())}, base_share=[1, 1]),
}


def headed(name: str, **options):
    return make_setup(head=HEADS[name], heads=LOSSES[name](), **options)


@pytest.mark.parametrize("name", HEADS)
def test_training_moves_body_and_head_and_the_checkpoint_holds_both(tmp_path, name):
    """The callback compares chain walk and real decoding, and would stop the run if they differed."""
    setup = headed(name)
    before = weights(setup.module)
    fit(setup, tmp_path, steps=4)
    same = [key for key, value in weights(setup.module).items() if torch.equal(value, before[key])]
    assert not same
    draft = load_draft(tmp_path / "checkpoints" / "last.ckpt", setup.loaded)
    assert {f"draft.{key}" for key in draft.state_dict()} == before.keys()
    assert all(torch.equal(v, weights(setup.module.draft)[k]) for k, v in draft.state_dict().items())
    result = measure(
        setup.loaded.target, draft, setup.prompts, label="trained", max_new_tokens=12, stop_token_ids=(), batch_size=3
    )
    assert result["lossless"] == {"equal": 6, "total": 6} == result["chain_walk"]
    assert result["proposing"]["head_seconds"] > 0


@pytest.mark.parametrize("name", ["gru", "selector"])
def test_resumed_equals_uninterrupted(tmp_path, name):
    """A loss that changes with the step goes on from the step, too."""
    whole = headed(name)
    fit(whole, tmp_path / "whole", steps=5, evaluate=False)
    fit(headed(name), tmp_path / "first", steps=2, evaluate=False)
    second = headed(name)
    fit(second, tmp_path / "second", steps=5, resume=tmp_path / "first" / "end.ckpt", evaluate=False)
    expected = weights(whole.module)
    assert all(torch.equal(value, expected[key]) for key, value in weights(second.module).items())


def test_resuming_with_another_head_is_refused(tmp_path):
    fit(headed("markov"), tmp_path, steps=1, evaluate=False)
    for other in (make_setup(), headed("gru")):
        with pytest.raises(ValueError, match=r"another contract:\n  head: checkpoint \{'name': 'markov'"):
            fit(other, tmp_path / "other", steps=2, resume=tmp_path / "end.ckpt", evaluate=False)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_put_on_a_trained_draft(tmp_path, name):
    plain = make_setup()
    fit(plain, tmp_path, steps=3, evaluate=False)
    draft = headed(name).module.draft
    adopt(draft, load_draft(tmp_path / "end.ckpt", plain.loaded))
    options = {"label": "x", "max_new_tokens": 16, "stop_token_ids": (), "verifier": Match(), "warm_up": False}
    found, expected = (measure(plain.loaded.target, d, plain.prompts, **options) for d in (draft, plain.module.draft))
    assert found["acceptance"] == expected["acceptance"]
    kept = weights(draft)
    assert all(torch.equal(kept[key], value) for key, value in weights(plain.module.draft).items())
    adopt(headed(name).module.draft, draft)  # the same head comes along
    with pytest.raises(ValueError, match=r"can be added, not taken away or exchanged\):\n  head: there"):
        adopt(plain.module.draft, draft)


def test_a_draft_of_another_shape_is_not_adopted():
    mine, other = make_setup().module.draft, make_setup(depth=2).module.draft
    with pytest.raises(ValueError, match=r"the draft there is another one .*:\n  depth: there 2, here 1"):
        adopt(mine, other)
    longer = Draft(DraftShape.from_dict(mine.shape.to_dict() | {"block_size": 9}))
    adopt(longer, mine)
    assert torch.equal(longer.fc.weight, mine.fc.weight)


def test_a_loss_on_logits_that_rule_tokens_out_is_refused():
    with pytest.raises(
        ValueError, match=r"base_share=\[0\.0, 0\.0\]: a selector head gives most tokens no probability"
    ):
        make_setup(head=HEADS["selector"])
