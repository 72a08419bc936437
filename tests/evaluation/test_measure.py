"""Measuring under each verifier: what the row says of it, and figures that follow from the traces."""

from __future__ import annotations

import pytest
from toys import random_prompts, tiny_draft, tiny_target
from verifiers import VERIFIERS

from dflash.decode.sampling import Sampling
from dflash.evaluation.fields import describe
from dflash.evaluation.measure import measure
from dflash.evaluation.tables import DETAIL_COLUMNS, markdown_table

OPTIONS = {"label": "trained draft", "max_new_tokens": 14, "stop_token_ids": (5,), "batch_size": 2, "warm_up": False}


@pytest.fixture(scope="module")
def pair():
    target = tiny_target("qwen3")
    return target, tiny_draft(target)


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_row_names_its_verifier_and_counts_its_proposals(pair, name):
    verifier = VERIFIERS[name]
    m = measure(*pair, random_prompts((4, 9, 6)), verifier=verifier, **OPTIONS)
    assert m["lossless"] == {"equal": 3, "total": 3}
    assert m["verifier"] == verifier.name
    assert describe(m) == "block 8, batch 2, T=0" + ("" if name == "chain" else f", {verifier.name}")
    assert (m["chain_walk"] is not None) == verifier.whole_chain
    assert [sum(part) for part in zip(*m["acceptance"]["per_prompt"], strict=True)] == [
        m["acceptance"]["num_tokens"],
        m["acceptance"]["num_rounds"],
    ]
    own, own_seconds, ours, our_seconds = (sum(part) for part in zip(*m["speed"]["per_prompt"], strict=True))
    assert ours / our_seconds / (own / own_seconds) == pytest.approx(m["speed"]["total_speedup"])
    counted = m["proposals"]
    assert {"chain": 7.0, "rejection": 7.0, "ddtree": 12.0}.get(name, counted["mean"]) == counted["mean"]
    if verifier.whole_chain:
        assert m["chain_walk"] == {"equal": 3, "total": 3}
        assert counted["expected_acceptance"] is None
    else:
        assert 1 <= counted["realised_acceptance"] <= 8
        assert 1 <= counted["expected_acceptance"] <= 8
        cell = f"{counted['expected_acceptance']:.2f} / {counted['realised_acceptance']:.2f}"
        assert cell in markdown_table({"measurements": [m]}, DETAIL_COLUMNS)


def test_a_row_names_the_cuts_of_its_sampling(pair):
    sampling = Sampling(temperature=1.0, seed=3, top_k=4)
    m = measure(*pair, random_prompts((4, 5)), verifier=VERIFIERS["ddtree"], sampling=sampling, **OPTIONS)
    assert m["cuts"] == {"top_k": 4}
    assert describe(m) == "block 8, batch 2, T=1, top_k=4, ddtree"
    assert m["lossless"] == {"equal": 2, "total": 2}
