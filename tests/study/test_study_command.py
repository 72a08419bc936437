"""python -m dflash.study: what it says to its user, without running anything long."""

from __future__ import annotations

import pytest

from dflash.study.__main__ import main
from dflash.study.definition import study_names


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run"], "say which study, one of anchors"),
        (["run", "dept"], "choose one of anchors"),
        (["run", "depth", "trainer=gpu"], "give --out FOLDER"),
        (["report", "depth", "--out", "nowhere"], "no results in nowhere/depth; run python -m dflash.study run depth"),
    ],
)
def test_mistakes_are_told_in_one_message(arguments, told, capsys):
    assert main(arguments) == 1
    assert told in capsys.readouterr().err


def test_the_list_names_every_study(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in study_names())
