"""Taps, layouts and shapes: the paper's rules, and a sentence for every mistake."""

from __future__ import annotations

import json

import pytest
from toys import tiny_draft, tiny_target

from dflash.draft.draft import Draft
from dflash.draft.layout import alternating_layout, full_layout, sliding_layout
from dflash.draft.shape import DraftShape, shape_draft
from dflash.draft.taps import check_taps, early_taps, explicit_taps, late_taps, uniform_taps

FIELDS = {"depth": 2, "block_size": 4, "taps": uniform_taps(count=1), "layout": full_layout(), "mask_token_id": 63}


@pytest.mark.parametrize(
    ("num_layers", "count", "expected"),
    [
        (24, 5, (1, 6, 11, 16, 21)),
        (24, 3, (1, 11, 21)),
        (24, 1, (12,)),
        (36, 5, (1, 9, 17, 25, 33)),
        (4, 1, (2,)),
        (6, 3, (1, 2, 3)),
    ],
)
def test_uniform_taps(num_layers, count, expected):
    assert uniform_taps(count=count)(num_layers) == expected


def test_other_rules():
    assert early_taps(count=4)(24) == (0, 4, 7, 11)
    assert late_taps(count=4)(24) == (12, 15, 19, 22)
    assert explicit_taps(layers=[0, 5, 22])(24) == (0, 5, 22)


@pytest.mark.parametrize("num_layers", range(4, 40))
def test_every_rule_gives_valid_taps_wherever_it_gives_any(num_layers):
    for rule in (uniform_taps, early_taps, late_taps):
        for count in range(1, num_layers + 1):
            try:
                taps = rule(count=count)(num_layers)
            except ValueError as error:
                assert f"draft.taps.count={count}" in str(error)
            else:
                assert len(check_taps(taps, num_layers)) == count


@pytest.mark.parametrize("layers", [[], [1, 1], [3, 2], [-1, 2], [0, 23]])
def test_taps_that_no_target_has_are_refused(layers):
    with pytest.raises(ValueError, match=r"draft\.taps=.*between 0 and 22.*last one cannot be tapped"):
        explicit_taps(layers=layers)(24)


@pytest.mark.parametrize("count", [0, -1, 22])
def test_a_count_without_room_is_refused_with_the_bound(count):
    with pytest.raises(ValueError, match=rf"draft\.taps\.count={count}.*1 to 21 taps.*24 layers"):
        uniform_taps(count=count)(24)


def test_layouts():
    assert full_layout()(3) == (None, None, None)
    assert sliding_layout(window=7)(2) == (7, 7)
    assert alternating_layout(window=7)(5) == (None, 7, None, 7, None)
    assert alternating_layout(window=7)(4) == (7, None, 7, None)
    for layout in (sliding_layout, alternating_layout):
        with pytest.raises(ValueError, match=r"layout\.window=0"):
            layout(window=0)


def test_the_published_gpt_oss_draft():
    """8 layers over gpt-oss-20b's dimensions: hidden 2880, MLP 7680, 64 query and 8 key-value heads of 64."""
    dims = tiny_target("gpt_oss").dims
    big = {"hidden_size": 2880, "num_layers": 24, "num_heads": 64, "num_kv_heads": 8, "head_dim": 64}
    shape = shape_draft(
        type(dims)(**vars(dims) | big),
        depth=8,
        block_size=8,
        mlp_ratio=7680 / 2880,
        taps=uniform_taps(count=5),
        layout=full_layout(),
        mask_token_id=200000,
    )
    assert (shape.hidden_size, shape.intermediate_size, shape.depth) == (2880, 7680, 8)
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.attention_bias) == (64, 8, 64, True)
    assert shape.taps == (1, 6, 11, 16, 21)
    assert shape.num_target_layers == 24


def test_heads_and_biases_can_be_set():
    changes = {"num_heads": 1, "head_dim": 16, "attention_bias": False}
    shape = shape_draft(tiny_target("gpt_oss").dims, **FIELDS | changes)
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.attention_bias) == (1, 1, 16, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, r"draft\.depth=0: must be at least 1"),
        ({"block_size": 0}, r"block_size=0: must be at least 1"),
        ({"num_heads": -1}, r"draft\.num_heads=-1"),
        ({"num_heads": 4, "num_kv_heads": 3}, r"num_kv_heads=3 does not divide draft\.num_heads=4.*\[1, 2, 4\]"),
        ({"head_dim": 7}, r"draft\.head_dim=7.*even"),
        ({"mlp_ratio": 0.0}, r"draft\.mlp_ratio=0\.0: must be above 0"),
        ({"taps": uniform_taps(count=2)}, r"draft\.taps\.count=2.*1 to 1 taps"),
    ],
)
def test_mistakes_name_key_value_and_bound(change, message):
    with pytest.raises(ValueError, match=message):
        shape_draft(tiny_target("qwen3").dims, **FIELDS | change)


def test_a_shape_survives_json():
    shape = tiny_draft(tiny_target("gpt_oss"), layout=alternating_layout(window=5)).shape
    assert DraftShape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


def names_of_the_field(depth: int, *, bias: bool) -> set[str]:
    names = {"fc.weight", "hidden_norm.weight", "norm.weight"}
    for i in range(depth):
        names |= {f"layers.{i}.self_attn.{x}_proj.weight" for x in "qkvo"}
        names |= {f"layers.{i}.self_attn.{x}_proj.bias" for x in "qkvo"} if bias else set()
        names |= {f"layers.{i}.self_attn.{x}_norm.weight" for x in "qk"}
        names |= {f"layers.{i}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
        names |= {f"layers.{i}.{x}_layernorm.weight" for x in ("input", "post_attention")}
    return names


@pytest.mark.parametrize(("family", "depth", "count"), [("qwen3", 5, 58), ("gpt_oss", 8, 123)])
def test_weight_names_are_the_fields(family, depth, count):
    target = tiny_target(family)
    draft = Draft(shape_draft(target.dims, **FIELDS | {"depth": depth, "taps": explicit_taps(layers=[0, 1])}))
    names = set(draft.state_dict())
    assert names == names_of_the_field(depth, bias=family == "gpt_oss")
    assert len(names) == count
    assert draft.fc.weight.shape == (32, 64)
    assert draft.num_parameters == sum(p.numel() for p in draft.parameters() if p.requires_grad)
