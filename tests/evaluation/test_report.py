"""A written report reads back as it was, its files are whole, and broken ones are refused with a reason."""

from __future__ import annotations

import csv
import json
import re

import numpy
import pytest

from dflash.evaluation.report import csv_text, git_commit, plain, provenance, read_report, write_report, write_whole


def test_round_trip(report, tmp_path):
    paths = write_report(report, tmp_path / "run")
    assert set(paths) == {"json", "csv", "markdown", "curve", "histogram", "survival"}
    assert all(path.stat().st_size > 100 for path in paths.values())
    assert read_report(tmp_path / "run") == report
    assert read_report(paths["json"]) == report
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_key_order_is_stable(report):
    turned = {key: report[key] for key in reversed(report)}
    turned["measurements"] = [dict(reversed(m.items())) for m in report["measurements"]]
    assert json.dumps(plain(turned)) == json.dumps(plain(report))
    assert list(plain(turned)) == list(report)
    lengths = {"acceptance": {"histogram": {10: 1, 9: 2, 1: 3}}}
    assert list(plain(lengths)["acceptance"]["histogram"]) == ["1", "9", "10"]


def test_measurements_csv(report, make_measurement, tmp_path, monkeypatch):
    monkeypatch.setattr("dflash.evaluation.report.PLOTS", ())
    report["measurements"].append(make_measurement(block_size=16, temperature=1.0) | {"lossless": None})
    with write_report(report, tmp_path)["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["untrained draft", "trained draft", "trained draft"]
    assert float(rows[1]["acceptance.mean"]) == 3.17
    assert float(rows[1]["acceptance.mean_interval.high"]) == 3.37
    assert float(rows[0]["speed.total_speedup"]) == pytest.approx(0.58)
    assert rows[1]["acceptance.histogram.8"] == "208" and rows[0]["acceptance.histogram.8"] == ""
    assert rows[2]["lossless.equal"] == "" and "lossless" not in rows[2]
    assert float(rows[2]["acceptance.prefix_survival.15"]) == 0.0
    assert list(rows[0])[:4] == ["label", "block_size", "batch_size", "temperature"]


def test_markdown(report, tmp_path):
    text = write_report(report, tmp_path)["markdown"].read_text()
    assert text.startswith("# DFlash draft for tiny_gpt_oss\n")
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(links) == 3 and all((tmp_path / link).is_file() for link in links)
    for part in ("3.17 (2.97", "1:412 2:230", "| seed | 7 |", "| bad_lines | not JSON: 3 |", "bonus", "| git_commit |"):
        assert part in text


def test_sparse_report_and_stale_plots(tmp_path):
    write_whole(tmp_path / "plots" / "prefix_survival.png", b"of an earlier run")
    paths = write_report({"measurements": [{"label": "x"}], "provenance": None}, tmp_path)
    assert set(paths) == {"json", "csv", "markdown"}
    assert not list((tmp_path / "plots").iterdir())
    assert write_report({}, tmp_path / "empty")["markdown"].read_text().startswith("# Acceptance report")


def test_values_json_cannot_hold():
    value = {"a": float("nan"), "b": (1, float("inf")), "c": numpy.float32(0.5), "d": numpy.int64(3), "e": True}
    assert plain(value) == {"a": None, "b": [1, None], "c": 0.5, "d": 3, "e": True}
    json.dumps(plain(value), allow_nan=False)
    with pytest.raises(ValueError, match=r"report\.measurements\[0\]\.label is a set"):
        plain({"measurements": [{"label": {1}}]})


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no report at"), ("{", "not valid JSON"), ("[1]", "not a report"), ('{"measurements": 3}', "not a report")],
)
def test_unreadable_reports(tmp_path, content, words):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_report(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_csv_text_puts_named_columns_first():
    assert csv_text([{"b": 1, "a": None}], first=["z", "b"]).splitlines() == ["z,b,a", ",1,"]


def test_provenance(tmp_path):
    found = provenance(
        "python train.py", seed=3, threads=2, gpu="GPU X", seconds={"train": 1.5}, packages=["no-such-1"]
    )
    assert found["machine"].endswith("GPU X") and "logical cores" in found["machine"]
    assert found["versions"]["no-such-1"] is None and found["versions"]["python"].count(".") == 2
    assert (found["seed"], found["threads"], found["seconds"]) == (3, 2, {"train": 1.5})
    assert provenance("x", seed=0, threads=1)["versions"]["torch"]
    assert git_commit(tmp_path) is None
