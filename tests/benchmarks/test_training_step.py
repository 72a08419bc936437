"""benchmarks/training_step.py: its floor counts what torch counts, and its table what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import training_step
from draft_step import SHAPES, Case, Step
from flops import step_flops
from torch.utils.flop_counter import FlopCounterMode

TINY = Case(32, 48, 2, 4, 2, 8, True, 3, 96, length=40, rows=2, anchors=6, block_size=4, chunk_blocks=5)


def test_the_floor_is_what_torch_counts():
    """With two pieces every context token is scored: counted as pairs, both numbers are the same, part by part."""
    case = replace(TINY, attention="two_pieces")
    step = Step(case, "cpu")
    blocks = int(step.blocks.valid_BA.sum())
    assert blocks == case.rows * case.anchors  # all valid, so that nothing is computed in vain
    pairs = blocks * case.block_size * (case.length + case.block_size)
    expected = step_flops(case.shape, replace(step.load(), pairs=pairs), vocab_size=case.vocab_size)
    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == sum(expected.values())
    assert step.load().pairs < pairs


def test_a_step_trains():
    step = Step(TINY, "cpu")
    before = [p.detach().clone() for p in step.draft.parameters()]
    step()
    assert all(not torch.equal(p, old) for p, old in zip(step.draft.parameters(), before, strict=True))


def test_the_flagship_case_is_the_flagships_draft():
    from dflash.compose import read_settings

    case, settings = SHAPES["gpt_oss_20b"], read_settings("train", ["experiment=gpt_oss_20b"])
    dims, draft = settings["target_facts"]["dims"], settings["draft"]
    assert (case.length, case.anchors, case.block_size) == (
        settings["data"]["length"], settings["num_anchors"], settings["block_size"],
    )  # fmt: skip
    assert (case.depth, case.num_taps) == (draft["depth"], len(draft["taps"]["layers"]))
    assert case.mlp == round(draft["mlp_ratio"] * dims["hidden_size"])
    names = ("hidden_size", "vocab_size", "num_heads", "num_kv_heads", "head_dim")
    assert (case.hidden, case.vocab_size, case.heads, case.kv_heads, case.head_dim) == tuple(dims[n] for n in names)
    assert case.chunk_blocks == settings["objective"]["chunk_blocks"] and case.rows == settings["data"]["batch_size"]


def test_the_command_leaves_table_json_and_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(training_step.SHAPES, "small", TINY)
    monkeypatch.setattr("training_step.on_device", lambda device, function, *arguments: function(*arguments))
    options = ["--lengths", "80", "--anchors", "--block-sizes", "--vocabularies", "--repeats", "2"]
    assert training_step.main([*options, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "training_step.json").read_text())["rows"]
    assert [row["case"]["length"] for row in rows] == [40, 80]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(2 * row["case"]["length"] / row["median_seconds"])
        assert 0 < row["share_of_matmul_rate"] < 1
    assert (tmp_path / "training_step.png").is_file()
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("└")


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert training_step.main(["--device", "cuda"]) == 1
    assert "no CUDA GPU is visible here" in capsys.readouterr().err
