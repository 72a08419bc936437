"""Heads that fit neither the target nor the loss nor the verifier are told before anything is loaded."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["heads=markov", "draft.head.rank=0"], "draft.head.rank=0: must be a whole number of at least 1"),
        (
            ["heads=selector", "draft.head.top_k=5000"],
            "draft.head.top_k=5000: must be at most the target's 4096 tokens",
        ),
        (["heads=gru", "draft.head.state_size=1.5"], "draft.head.state_size=1.5: must be a whole number"),
        (["heads=markov", "draft.head.confident=true"], "draft.head.confident=true: no term of the loss trains it"),
        (["heads=dspark", "draft.head.confident=false"], "objective.heads.terms.confidence: this draft has no"),
        (["heads=selector", "objective.heads.base_share=[0.0,1.0]"], "set objective.heads.base_share=[1,1]"),
        (["heads=gru", "objective.heads.base_share=[0.0,2.0]"], "objective.heads.base_share=[0.0, 2.0]: must be"),
        (
            ["verify=adaptive", "decoding.verifier.trained=true"],
            "this draft has no confidence head; choose heads=dspark",
        ),
        (["init_from=nowhere"], "init_from=nowhere: does not exist"),
    ],
)
def test_what_does_not_fit_is_told(settings, overrides, message):
    with pytest.raises(ValueError, match="One thing is wrong") as caught:
        settings(*overrides)
    assert message in str(caught.value)


def test_heads_compose_with_every_objective_and_verifier(settings):
    plain = settings("heads=dspark", "objective=kl", "verify=adaptive", "decoding.verifier.trained=true")
    assert plain["draft"]["head"]["rank"] == 256 and "forward_kl" in plain["objective"]["terms"]
    assert settings("heads=none")["objective"]["heads"] is None
