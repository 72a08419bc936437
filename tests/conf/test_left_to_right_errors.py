"""What does not go with a draft that goes left to right is told before anything is loaded; so are wrong baselines."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("overrides", "finding"),
    [
        (["draft=eagle", "verify=ddtree"], r"draft\.left_to_right=true with a tree verifier: .*choose verify=chain"),
        (["draft=eagle", "verify=caddtree"], r"draft\.left_to_right=true with a tree verifier: .*choose verify=chain"),
        (["draft=eagle", "heads=gru"], r"draft\.left_to_right=true with a gru head: .*choose heads=none"),
        (
            ["baselines=lookup", "baselines.lookup.longest=0"],
            r"baselines\.lookup\.longest=0: must be a whole number of at least 1",
        ),
        (["callbacks=ema", "callbacks.average.decay=2"], r"callbacks\.average\.decay=2: must be"),
        (["objective=auf", "objective.normalise=mean"], r"objective\.normalise=mean: choose one of .*blocks"),
    ],
)
def test_each_is_one_sentence(settings, overrides, finding):
    with pytest.raises(ValueError, match=finding):
        settings(*overrides)


def test_chains_of_every_kind_are_fine(settings):
    for verify in ("chain", "rejection", "adaptive"):
        draft = settings("draft=eagle", "heads=none", f"verify={verify}", "baselines=lookup")["draft"]
        assert draft["left_to_right"] is True
