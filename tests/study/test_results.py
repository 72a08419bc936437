"""Results on disk: read back as written, whole after a kill at any moment, refused when broken."""

from __future__ import annotations

import json

import pytest

from dflash.study.results import FIRST, Results

ORIGIN = {"measured": "123456789012", "target_fingerprint": "1e5", "machine": "a, b", "threads": 2}


def measurement(batch_size: int, mean: float) -> dict:
    return {
        "label": "x",
        "batch_size": batch_size,
        "temperature": 0.0,
        "acceptance": {"mean": mean, "mean_interval": [1.0, 2.5], "per_prompt": [[6, 2], [4, 4]]},
        "speed": {"total_speedup": 1.5, "per_prompt": [[5.0, 0.1, 5.0, 0.2]]} if batch_size == 1 else {},
        "lossless": {"equal": 2, "total": 2} if batch_size == 1 else None,
        "verifier": "chain",
    }


def add(results: Results, arm: str, seed: int, mean: float = 2.0, **origin) -> None:
    head = {"arm": arm, "seed": seed, "num_parameters": 10}
    results.add(head, [measurement(1, mean), measurement(8, mean)], ORIGIN | origin)


def test_rows_come_back_as_they_were(tmp_path):
    results = Results(tmp_path)
    add(results, "a", 0)
    add(results, "b_1e3", 0, 2.25)
    again = Results(tmp_path)
    present = [{key: value for key, value in row.items() if value is not None} for row in results.rows]
    assert [{k: v for k, v in row.items() if v is not None} for row in again.rows] == present
    assert tuple(next(iter((tmp_path / "results.csv").read_text().splitlines())).split(",")[:4]) == FIRST
    assert again.details(again.rows_of("a", 0)[0])["acceptance"] == [[6, 2], [4, 4]]
    assert again.details(again.rows_of("a", 0)[1])["speed"] is None
    assert len(again.rows_of("b_1e3")) == 2 and again.rows_of("c") == []


def test_a_trial_is_finished_with_its_settings_and_target_only(tmp_path):
    results = Results(tmp_path)
    add(results, "a", 0)
    same = {"measured": "123456789012", "target_fingerprint": "1e5"}
    assert Results(tmp_path).finished("a", 0, **same)
    assert not results.finished("a", 1, **same) and not results.finished("b", 0, **same)
    assert not results.finished("a", 0, **same | {"measured": "other"})
    assert not results.finished("a", 0, **same | {"target_fingerprint": "other"})


def test_a_trial_run_anew_replaces_its_rows(tmp_path):
    results = Results(tmp_path)
    add(results, "a", 0)
    add(results, "b", 0)
    add(results, "a", 0, 3.0, measured="other")
    rows = Results(tmp_path).rows
    assert [(row["arm"], row["acceptance.mean"]) for row in rows] == [("b", 2.0)] * 2 + [("a", 3.0)] * 2


def test_a_kill_between_the_two_files_loses_no_finished_trial(tmp_path):
    results = Results(tmp_path)
    add(results, "a", 0)
    before = (tmp_path / "results.csv").read_text()
    add(results, "b", 0)
    (tmp_path / "results.csv").write_text(before)  # as if killed before it was renamed
    again = Results(tmp_path)
    assert {row["arm"] for row in again.rows} == {"a"}
    add(again, "b", 0, 2.5)
    lines = [json.loads(line) for line in (tmp_path / "per_prompt.jsonl").read_text().splitlines()]
    assert len(lines) == len({(line["arm"], line["batch_size"]) for line in lines}) == 4


@pytest.mark.parametrize("break_it", ["lose", "garble", "drop"])
def test_broken_files_are_refused_with_what_to_do(tmp_path, break_it):
    results = Results(tmp_path)
    add(results, "a", 0)
    details = tmp_path / "per_prompt.jsonl"
    if break_it == "lose":
        details.unlink()
    elif break_it == "garble":
        details.write_text("{")
    else:
        details.write_text(details.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="run the study again"):
        Results(tmp_path)
