"""benchmarks/round_cost.py: what it times is a round, what it scales is right, and what it counts is really touched."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import round_cost
import torch
from round_parts import SHAPES, Round, build_target

TINY = replace(
    SHAPES["small"], num_layers=6, hidden_size=32, intermediate_size=16, num_experts=8, num_heads=4, num_kv_heads=2,
    head_dim=8, vocab_size=64, sliding_window=16, num_taps=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def parts() -> Round:
    target = build_target(TINY, layers=4, device="cpu", dtype=torch.float32)
    parts = Round(target, TINY, context=24, longest_block=8, device="cpu")
    parts.open(2)
    return parts


def test_timing_leaves_the_sessions_where_they_were(parts):
    parts.verify(8, repeats=1)
    parts.draft(8, repeats=1)
    assert parts.session.longest == parts.proposals.longest == 24
    assert parts.session.lengths_B.tolist() == parts.proposals.lengths_B.tolist() == [24, 24]


def test_experts_are_counted_by_what_the_routers_chose(parts):
    one, many = (parts.verify(block, repeats=1)["experts"] for block in (1, 8))
    assert one["per_layer"] == 8 and 2 <= one["touched_per_layer"] <= 4  # two rows, two experts each
    assert one["touched_per_layer"] < many["touched_per_layer"] <= 8
    H, inner = 32, 16
    size = 4 * (H * 2 * inner + 2 * inner + inner * H + H)
    assert one["bytes_read"] == pytest.approx(one["touched_per_layer"] * size * 6)  # of all six layers


def test_fewer_layers_are_scaled_up_and_the_head_is_not(parts, monkeypatch):
    times = iter([4.0, 1.0])  # the layers, lm_head
    monkeypatch.setattr("round_parts.median_seconds", lambda call, **_: next(times))
    assert parts.verify(1, repeats=1)["seconds"] == 4.0 * 6 / 4 + 1.0


@pytest.mark.parametrize("layers", [2, 5, 8])
def test_layers_that_cannot_be_scaled_are_refused(layers):
    with pytest.raises(ValueError, match=f"--layers {layers}: must be even.*between 4 and 6"):
        build_target(TINY, layers=layers, device="cpu", dtype=torch.float32)


def test_the_command_leaves_table_json_and_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(round_cost.SHAPES, "small", TINY)
    options = ["--blocks", "1", "4", "--batches", "1", "2", "--context", "24", "--repeats", "2"]
    assert round_cost.main([*options, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "round_cost.json").read_text())["rows"]
    assert [(row["batch_size"], row["block_size"]) for row in rows] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    for row in rows:
        cost = (row["verify"]["seconds"] + row["draft"]["seconds"]) / row["loop"]["seconds"]
        assert row["break_even_acceptance"] == pytest.approx(cost)
        assert row["speedup"] == {str(tau): pytest.approx(tau / cost) for tau in (2, 3, 4) if tau <= row["block_size"]}
    assert (tmp_path / "round_cost.png").is_file()
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("└")


def test_the_flagship_shape_is_gpt_oss_20b(tmp_path):
    from dflash.compose import read_settings

    shape = SHAPES["gpt_oss_20b"]
    dims = read_settings("train", ["experiment=gpt_oss_20b"])["target_facts"]["dims"]
    names = ("hidden_size", "num_layers", "vocab_size", "num_heads", "num_kv_heads", "head_dim")
    assert {name: getattr(shape, name) for name in names} == {name: dims[name] for name in names}
