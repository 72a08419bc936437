"""benchmarks/variants.py at toy sizes: rounds of real drafts, each against the first, and a mistake told in a line."""

from __future__ import annotations

import json

import variants


def test_each_variant_has_its_row(tmp_path, capsys):
    recipes = ["experiment=smoke", "experiment=smoke draft=depth3"]
    arguments = ["--variants", *recipes, "--batches", "1", "2", "--repeats", "2", "--out", str(tmp_path)]
    assert variants.main(arguments) == 0
    rows = json.loads((tmp_path / "variants.json").read_text())["rows"]
    assert [(row["variant"], row["batch_size"]) for row in rows] == [(r, size) for size in (1, 2) for r in recipes]
    assert rows[0]["ratio"] == rows[2]["ratio"] == 1 and rows[1]["parameters"] > rows[0]["parameters"]
    assert all(abs(row["round"] - row["propose"] - row["verify"] - row["extend"]) < 1e-9 for row in rows)
    assert (tmp_path / "variants.png").is_file()
    assert "a round of untrained drafts" in capsys.readouterr().out


def test_overrides_that_do_not_fit_are_one_error(capsys):
    assert variants.main(["--variants", "draft=depth99"]) == 1
    assert "depth99" in capsys.readouterr().err
