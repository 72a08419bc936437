"""benchmarks/end_to_end_gpu.py at toy sizes: every phase really runs, and the report says what was found."""

from __future__ import annotations

import json

import end_to_end_gpu
import pytest
from end_to_end_phases import Workshop, num_parameters, steps_that_fit
from instruments import ROOT
from source_text import gather

from dflash.compose import read_settings
from dflash.data.corpus import read_corpus
from dflash.data.prompts import read_texts
from dflash.target.families import gpt_oss_config


@pytest.mark.slow
def test_the_whole_path_on_a_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nothing depends on where it is called
    assert end_to_end_gpu.main(["--small", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out/end_to_end_gpu.json").read_text())
    assert (tmp_path / "out/end_to_end_gpu.png").read_bytes().startswith(b"\x89PNG")
    found = {(row["new_tokens"], row["block_size"], row["temperature"]) for row in result["rows"]}
    left_out = {int(text.split()[0]) for text in result["left_out"]}
    assert {(16, 8, 0.0), (16, 8, 1.0)} <= found
    assert len(found) == 12 or left_out, "a condition is neither measured nor named as left out"
    for row in result["rows"]:
        assert row["equal"]["equal"] == row["equal"]["total"] == 2  # fp32, greedy and sampled by match
        assert row["temperature"] or row["chain_walk"] == {"equal": 2, "total": 2}
        assert 1 <= row["acceptance"] <= row["block_size"] and row["speedup"] > 0
    assert result["target"]["steps"] == 20 and 0 < result["target"]["held_out_bits_per_byte"] < 12
    assert result["draft"]["steps"] == 12 and result["draft"]["num_prompts"] == 16
    assert set(result["seconds"]) >= {"corpus", "pre-training", "distillation", "measuring", "in all"}
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("└")  # the table comes last


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert end_to_end_gpu.main([]) == 1
    assert capsys.readouterr().err == (
        "--device cuda: no CUDA GPU is visible here; use a machine that has one, or --small\n"
    )


def test_the_full_target_has_about_100_million_parameters():
    assert 95e6 < num_parameters(end_to_end_gpu.FULL) < 105e6


@pytest.mark.parametrize("plan", [end_to_end_gpu.FULL, end_to_end_gpu.SMALL], ids=lambda plan: plan.device)
def test_every_task_of_a_plan_composes(plan, tmp_path):
    """The same overrides that the run hands to its tasks pass every check; no GPU is needed for that."""
    shop = Workshop(plan, folder=tmp_path, dtype="bfloat16", seconds=600, quiet=False)
    gpt_oss_config(vocab_size=plan.vocab_size, **plan.architecture).save_pretrained(shop.target)
    (tmp_path / "corpus").mkdir()
    settings = read_settings("train", shop.pretraining(100))
    assert settings["device"] == plan.device and settings["task"]["length"] == plan.pretrain_length
    settings = read_settings("train", shop.distillation(64))
    assert settings["trainer"]["accelerator"] == ("gpu" if plan.device == "cuda" else "cpu")
    prompts = read_texts(ROOT / "assets/prompts/held_out.jsonl")
    longest = max(plan.lengths)[0] + max(len(prompt.text) for prompt in prompts)
    assert longest < gpt_oss_config(vocab_size=plan.vocab_size, **plan.architecture).max_position_embeddings


def test_a_corpus_keeps_the_split_of_the_library(tmp_path):
    counts = gather(tmp_path, mebibytes=0.2)
    ours, own = read_corpus(tmp_path), {file.name: file for file in read_corpus()}
    assert counts["files"] == len(ours) and 0.15 * 2**20 < counts["bytes"] <= 0.2 * 2**20
    assert any(file.held_out for file in ours)
    assert all(file.text == own[file.name].text for file in ours)


def test_steps_are_what_fits():
    assert steps_that_fit(0.1, seconds=100, most=10_000) == 800
    assert steps_that_fit(0.1, seconds=100, most=500) == 500
    assert steps_that_fit(10, seconds=1, most=500) == 10
