"""benchmarks/target_features.py at toy sizes: all ways read the same, and one that does not run is named."""

from __future__ import annotations

import json

import target_features


def test_all_ways_agree_and_the_table_comes_last(tmp_path, capsys):
    assert target_features.main(["--lengths", "24", "--repeats", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "target_features.json").read_text())
    assert [(row["attention"], row["experts"]) for row in result["rows"]] == list(target_features.WAYS["cpu"])
    assert result["rows"][0]["apart"] == 0 and all(row["apart"] < 1e-5 for row in result["rows"])
    assert any(row["apart"] > 0 for row in result["rows"]), "no way computed anything by itself"
    assert (tmp_path / "target_features.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("└")


def test_a_way_that_does_not_run_is_named(tmp_path, capsys, monkeypatch):
    ways = (("eager", "grouped_mm"), ("flex_attention", "grouped_mm"))  # which on a CPU knows no sinks
    monkeypatch.setattr(target_features, "WAYS", {"cpu": ways})
    assert target_features.main(["--lengths", "24", "--repeats", "1", "--out", str(tmp_path)]) == 0
    assert "attention flex_attention, experts grouped_mm: Attention sinks cannot be run" in capsys.readouterr().out
    assert "error" in json.loads((tmp_path / "target_features.json").read_text())["rows"][1]


def test_documents_of_a_row_are_of_equal_length():
    batch = target_features.packed_rows(10, num_documents=4, vocab_size=50, device="cpu")
    assert batch.documents_BS.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3]]
    assert batch.positions_BS.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1, 2, 0]]
