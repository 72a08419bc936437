"""Baselines in the report: prompt lookup is measured as a draft is, by the same decoder and beside it."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from toys import random_prompts, tiny_draft, tiny_target

from dflash.assemble.measuring import measure_all
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.lookup import Lookup
from dflash.evaluation.measure import measure
from dflash.evaluation.tables import markdown_table

PROMPTS = random_prompts((5, 9, 12))
LIMITS = {"max_new_tokens": 40, "stop_token_ids": ()}


def test_lookup_is_measured_as_a_draft_is():
    target = tiny_target("qwen3")
    entry = measure(target, Lookup(), PROMPTS, label="prompt lookup", block_size=5, warm_up=False, **LIMITS)
    traces, _ = SpeculativeDecoder(target, Lookup(), block_size=5).generate(PROMPTS, **LIMITS)
    lengths = [length for trace in traces for length in trace.lengths]
    assert entry["acceptance"]["mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert entry["acceptance"]["mean"] > 1.2  # tiny greedy targets end in loops
    assert entry["lossless"] == {"equal": 3, "total": 3}
    assert (entry["label"], entry["verifier"], entry["chain_walk"]) == ("prompt lookup", "chain", None)
    assert entry["speed"]["total_speedup"] > 0


def test_baselines_stand_beside_the_draft_in_every_condition(monkeypatch):
    monkeypatch.setattr("dflash.assemble.measuring.PROMPTS_BESIDE", 2)
    target = tiny_target("qwen3")
    loaded = SimpleNamespace(target=target, stop_token_ids=())
    cuts = dict.fromkeys(("top_k", "top_p", "min_p"))
    decoding = {"batch_sizes": [1, 3], "temperatures": [0.0, 1.0], "max_new_tokens": 8, "seed": 0, **cuts}
    found = measure_all(
        loaded,
        {
            "untrained draft": tiny_draft(target, block_size=4, seed=1),
            "trained draft": tiny_draft(target, block_size=4),
        },
        [SimpleNamespace(ids=prompt) for prompt in PROMPTS],
        decoding=decoding,
        baselines=[Lookup()],
        verifier=None,
        block_size=None,
        console=Console(file=io.StringIO()),
    )
    rows = [(entry["label"], entry["batch_size"], entry["temperature"]) for entry in found]
    assert rows == [
        ("trained draft", 1, 0.0),
        ("prompt lookup", 1, 0.0),
        ("untrained draft", 3, 0.0),
        ("trained draft", 3, 0.0),
        ("prompt lookup", 3, 0.0),
        ("trained draft", 3, 1.0),
        ("prompt lookup", 3, 1.0),
    ]
    assert {entry["block_size"] for entry in found} == {4}
    for entry in found:
        count = 2 if entry["label"] == "untrained draft" else 3
        assert entry["lossless"] == {"equal": count, "total": count} and entry["num_prompts"] == count
    assert markdown_table({"measurements": found}).count("prompt lookup") == 3
