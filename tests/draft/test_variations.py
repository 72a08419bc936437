"""Variations of the published draft: training equals decoding in each, and what starts as the identity is it."""

from __future__ import annotations

import json

import pytest
import torch
from test_draft_session import LENGTH, trained_states
from toys import MASK, plain_batch, random_prompts, stir, tiny_draft, tiny_target

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.draft.adopt import adopt
from dflash.draft.convolution import Convolution
from dflash.draft.draft import Draft
from dflash.draft.heads.shapes import gru_head
from dflash.draft.layout import alternating_layout
from dflash.draft.shape import DraftShape
from dflash.evaluation.acceptance import chain_walk
from dflash.hub.bundle import TargetFacts
from dflash.hub.folder import FORMATS

VARIATIONS = {
    "causal": {"causal": True},
    "convolution": {"convolution": 8},
    "norm per tap": {"tap_norm": True},
    "mixture of taps": {"mixture": True},
    "separate context": {"separate_context": True},
    "all": {"causal": True, "convolution": 4, "tap_norm": True, "mixture": True, "separate_context": True},
}


@pytest.fixture(scope="module")
def target():
    return tiny_target("gpt_oss")


def varied(target, name: str, *, stirred: bool = True, **options) -> Draft:
    draft = tiny_draft(target, **VARIATIONS[name], **options)
    if stirred:
        stir(draft, scale=0.1)
    return draft


def random_ids(rows: int) -> torch.Tensor:
    return torch.randint(0, MASK, (rows, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", VARIATIONS)
@torch.no_grad()
def test_training_equals_decoding_in_a_ragged_batch(target, name):
    draft = varied(target, name, block_size=6, depth=3, layout=alternating_layout(window=7))
    taps, noise, hidden = trained_states(target, draft, plain_batch(random_ids(3)))
    session = draft.open(3, capacity=LENGTH + 8)
    at = [0, 0, 0]
    for step in ([9, 4, 13], [1, 5, 3], [6, 7, 0], [3, 3, 3]):  # ragged, equally long, and equally long still
        width = max(step) + 1
        chunk = torch.stack([taps[b, i : i + width] for b, i in enumerate(at)])
        for b, count in enumerate(step):
            chunk[b, count:] = 100.0
        at = [i + count for i, count in zip(at, step, strict=True)]
        session.extend(chunk, torch.tensor(step), lengths=at)
        found = session.propose(torch.stack([noise[b, i] for b, i in enumerate(at)]))
        expected = torch.stack([hidden[b, i] for b, i in enumerate(at)])
        torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)
    if not draft.shape.mixture:
        plain = tiny_draft(target, block_size=6, depth=3, layout=alternating_layout(window=7))
        plain.load_state_dict(draft.state_dict(), strict=False)
        assert not torch.allclose(plain(noise, taps, _geometry(target, plain)), hidden), "it changes nothing"


def _geometry(target, draft):
    from dflash.blocks import make_blocks
    from dflash.draft.mask import block_geometry

    batch = plain_batch(random_ids(3))
    anchors = torch.arange(LENGTH).expand(3, LENGTH)
    valid = torch.ones_like(anchors, dtype=torch.bool)
    blocks = make_blocks(batch, anchors, valid, block_size=draft.shape.block_size, mask_token_id=MASK)
    return block_geometry(batch, blocks)


@pytest.mark.parametrize("name", VARIATIONS)
def test_output_is_the_targets_own_and_foretold(target, name):
    prompts = random_prompts((3, 11, 7))
    own, _ = AutoregressiveDecoder(target).generate(prompts, max_new_tokens=14)
    draft = varied(target, name)
    traces, _ = SpeculativeDecoder(target, draft, block_size=5).generate(prompts, max_new_tokens=14)
    assert [trace.tokens for trace in traces] == [trace.tokens for trace in own]
    tokens = [trace.tokens for trace in own]
    assert chain_walk(target, draft, prompts, tokens, block_size=5) == [trace.lengths for trace in traces]


@pytest.mark.parametrize("name", ["convolution", "separate context"])
@torch.no_grad()
def test_what_starts_as_the_identity_can_be_put_on_a_trained_draft(target, name):
    plain = tiny_draft(target, block_size=6)
    stir(plain, seed=5, scale=0.1)
    _, _, expected = trained_states(target, plain, plain_batch(random_ids(3)))
    draft = varied(target, name, stirred=False, block_size=6)
    fresh = {key: value.clone() for key, value in draft.state_dict().items()}
    unlearnt = tiny_draft(target, block_size=6).state_dict()
    assert all(torch.equal(fresh[key], value) for key, value in unlearnt.items()), "equal seeds, other bodies"
    adopt(draft, plain)
    _, _, found = trained_states(target, draft, plain_batch(random_ids(3)))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="can be added, not taken away or exchanged"):
        adopt(plain, draft)


@pytest.mark.parametrize("name", ["causal", "convolution"])
@torch.no_grad()
def test_which_slots_hear_which(target, name):
    """One layer whose attention says nothing: a convolution carries a slot to the next one a sublayer, no further and
    never back; a causal block never looks ahead. No block hears another."""
    draft = varied(target, name, block_size=6, depth=1)
    if name == "convolution":
        draft.layers[0].self_attn.o_proj.weight.zero_()
        draft.layers[0].self_attn.o_proj.bias.zero_()
    taps, noise, before = trained_states(target, draft, plain_batch(random_ids(3)))
    changed = noise.clone()
    changed[1, 20, 2] += 1.0
    moved = (draft(changed, taps, _geometry(target, draft)) != before).any(-1)
    heard = moved[1, 20].tolist()
    assert heard == (
        [False, False, True, True, True, True] if name == "causal" else [False, False, True, True, True, False]
    )
    moved[1, 20] = False
    assert not moved.any()


def test_a_convolution_is_the_two_taps_written_out():
    convolution = Convolution(6, group_size=2)
    stir(convolution)
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    y = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    found_x, kernel = convolution.prepare(x)
    for side, (values, found) in enumerate(((x, found_x), (y, convolution.finish(y, kernel)))):
        projected = (x @ convolution.kernel_projection.weight.T).view(2, 4, 2, 2, 3)[:, :, side]
        for t in range(4):
            for channel in range(6):
                taps = [
                    float(tap == 0)
                    + convolution.base_kernel_bias[side, tap, channel]
                    + projected[:, t, tap, channel // 2]
                    for tap in range(2)
                ]
                before = values[:, t - 1, channel] if t else torch.zeros(2)
                expected = taps[0] * values[:, t, channel] + taps[1] * before
                torch.testing.assert_close(found[:, t, channel], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mixtures_and_norms_are_those_written_out(target):
    draft = varied(target, "all", depth=2)
    taps = (
        torch.randn(2, 5, 3, 32, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 25.0])[:, None]
    )
    contexts = draft.fuse(taps)
    normed = torch.stack(
        [
            torch.nn.functional.rms_norm(taps[:, :, t], (32,), draft.tap_norms[t].weight, draft.shape.rms_norm_eps)
            for t in range(3)
        ]
    )
    for layer in range(2):
        shares = draft.fc.weight[layer].softmax(0)
        mixed = sum(shares[t] * normed[t] for t in range(3))
        torch.testing.assert_close(contexts[layer], draft.hidden_norm(mixed), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(contexts[0], contexts[1])


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", [*VARIATIONS, "head"])
def test_a_shape_survives_json_and_formats_refuse_it(target, name, form):
    variations = VARIATIONS.get(name, {"head": gru_head(rank=3, state_size=3)})
    shape = tiny_draft(target, **variations).shape
    assert DraftShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape
    assert shape.variations.keys() == variations.keys()
    facts = TargetFacts(vocab_size=64)
    with pytest.raises(ValueError, match=r"this draft has .*: no format here can hold that"):
        form.to_config(shape, facts, dtype="float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"convolution": 5},
            r"draft\.convolution=5: must divide the target's hidden size of 32; .*\[1, 2, 4, 8, 16, 32\]",
        ),
        ({"convolution": 0}, r"draft\.convolution=0"),
        ({"convolution": 4, "left_to_right": True}, r"draft\.convolution=4 with draft\.left_to_right=true"),
    ],
)
def test_mistakes_name_key_value_and_bound(target, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_draft(target, **options)
