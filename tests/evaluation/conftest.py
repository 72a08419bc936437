"""A report as both scripts make it, with figures that are easy to recognise in a table."""

from __future__ import annotations

import pytest


def measurement(label="trained draft", *, block_size=8, batch_size=1, temperature=0.0, mean=3.17, speedup=1.72):
    histogram = {"1": 412, "2": 230, "3": 150, "8": 208} if label == "trained draft" else {"1": 1980, "2": 20}
    rounds = sum(histogram.values())
    longer = [sum(n for length, n in histogram.items() if int(length) > k) / rounds for k in range(1, block_size)]
    return {
        "label": label,
        "block_size": block_size,
        "batch_size": batch_size,
        "temperature": temperature,
        "num_prompts": 64,
        "max_new_tokens": 128,
        "acceptance": {
            "mean": mean,
            "mean_interval": [mean - 0.2, mean + 0.2],
            "median": 2,
            "p90": 8.0,
            "mean_of_prompts": mean + 0.1,
            "histogram": histogram,
            "prefix_survival": longer,
            "num_rounds": rounds,
            "num_tokens": 3170,
        },
        "speed": {
            "ar_tokens_per_second": 1234.5,
            "speculative_tokens_per_second": 99.44,
            "mean_prompt_speedup": speedup,
            "mean_prompt_speedup_interval": [speedup - 0.1, speedup + 0.1],
            "total_speedup": speedup + 0.03,
            "ar_prefill_seconds": 0.0213,
            "speculative_prefill_seconds": 0.0234,
            "round_cost_ar_steps": 1.81,
        },
        "lossless": {"equal": 63, "total": 64},
        "chain_walk": {"equal": 64, "total": 64},
        "repeated_4gram_share": 0.123,
    }


@pytest.fixture
def make_measurement():
    return measurement


@pytest.fixture
def report():
    steps = range(0, 1001, 100)
    return {
        "title": "DFlash draft for tiny_gpt_oss",
        "kind": "train",
        "provenance": {"command": "python train.py", "seed": 7, "threads": 2, "git_commit": None},
        "target": {"name": "tiny_gpt_oss", "family": "gpt_oss", "num_parameters": 4_123_456},
        "draft": {"num_parameters": 1_200_000, "depth": 2, "block_size": 8, "taps": [1, 2, 3], "layout": [None, 128]},
        "data": {"num_documents": 1000, "bad_lines": {"not JSON": 3}},
        "settings": {"steps": 1000},
        "measurements": [measurement("untrained draft", mean=1.01, speedup=0.55), measurement()],
        "curve": [{"step": s, "mean": 1 + s / 500, "median": 1 + s // 600, "p90": 1 + s / 200} for s in steps],
    }
