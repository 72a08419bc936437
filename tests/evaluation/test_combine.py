"""A multirun folder becomes one table, one CSV and one plot, whatever was swept and whichever jobs failed."""

from __future__ import annotations

import csv
import json

import pytest

from dflash.evaluation.combine import Job, combine, combined_plot, read_jobs, series_of, swept_keys


def write_job(folder, settings, measurements):
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"settings": settings, "measurements": measurements}))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweep(tmp_path, make_measurement):
    for name, size in enumerate((4, 8, 16)):
        both = [
            make_measurement("untrained draft", block_size=size),
            make_measurement(block_size=size, mean=2 + size / 8),
        ]
        write_job(tmp_path / str(name), {"checkpoint": "runs/a", "block_size": size}, both)
    (tmp_path / "logs").mkdir()
    return tmp_path


def test_three_jobs(sweep):
    path = combine(sweep, title="Block sizes")
    assert path == sweep / "combined.md"
    lines = path.read_text().splitlines()
    assert lines[0] == "# Block sizes"
    assert lines[2].startswith("| block_size | job | measurement | accept. mean")
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith(("| 4", "| 16"))
    ]
    assert [row[:3] for row in table[-1:]] == [["16", "2", "trained draft (block 16, batch 1, T=0)"]]
    assert table[-1][3].startswith("4.00 (3.80") and len(table) == 4
    assert "(combined.png)" in path.read_text() and "ailed" not in path.read_text()
    assert (sweep / "combined.png").read_bytes().startswith(b"\x89PNG")
    assert (sweep / "combined.png").stat().st_size > 10_000
    rows = rows_of(sweep / "combined.csv")
    assert [row["block_size"] for row in rows] == ["4", "4", "8", "8", "16", "16"]
    assert float(rows[3]["acceptance.mean"]) == 3.0 and rows[3]["job"] == "1" and rows[3]["status"] == "ok"


def test_failed_jobs_are_listed(sweep, monkeypatch):
    monkeypatch.setattr("dflash.evaluation.combine.sweep_plot", lambda *args, **kwargs: None)
    (sweep / "3" / ".hydra").mkdir(parents=True)
    (sweep / "3" / ".hydra" / "overrides.yaml").write_text("- checkpoint=runs/a\n- 'block_size=32'\n")
    (sweep / "10").mkdir()
    (sweep / "10" / "report.json").write_text("{")
    text = combine(sweep, title="t").read_text()
    assert "## Failed: 2 of 5 jobs" in text
    assert "* 3 (block_size=32): no report" in text and "* 10: 10/report.json is not valid JSON" in text
    assert "| 32 | 3 | **failed** |" in text
    rows = rows_of(sweep / "combined.csv")
    assert [(row["job"], row["status"], row["block_size"]) for row in rows[-2:]] == [
        ("3", "failed", "32"),
        ("10", "failed", ""),
    ]
    assert rows[-1]["error"] and rows[-1]["acceptance.mean"] == ""


def test_all_failed_and_no_jobs(tmp_path):
    assert combine(tmp_path, title="t") is None
    assert combine(tmp_path / "missing", title="t") is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "0").mkdir()
    (tmp_path / "combined.png").write_bytes(b"of an earlier sweep")
    assert "## Failed: 1 of 1 jobs" in combine(tmp_path, title="t").read_text()
    assert not (tmp_path / "combined.png").exists()


def test_nested_job_names_and_order(tmp_path):
    for name in ("taps=late/b=10", "taps=late/b=9", "taps=early/b=2"):
        write_job(tmp_path / name, {"b": 1}, [])
    write_job(tmp_path / "taps=late" / "b=9" / "again", {}, [])
    assert [job.name for job in read_jobs(tmp_path)] == ["taps=early/b=2", "taps=late/b=9", "taps=late/b=10"]


def test_swept_keys():
    jobs = [Job("0", {"a": 1, "b": "x", "c": None}), Job("1", {"a": 1, "b": "y"}), Job("2", error="failed")]
    assert swept_keys(jobs) == ["b"]
    assert swept_keys(jobs[:1]) == ["a", "b", "c"]
    assert swept_keys([Job("0"), Job("1")]) == []


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([16, 4, 8], [16.0, 4.0, 8.0]),
        (["0.5", "1e-3", 2], [0.5, 0.001, 2.0]),
        (["depth2", "depth4", "8"], ["depth2", "depth4", "8"]),
        ([True, False, None], ["True", "False", "–"]),  # noqa: RUF001
        ([8, 8, 4], ["8", "8", "4"]),
        ([[1, 2], [1], []], ["[1, 2]", "[1]", "–"]),  # noqa: RUF001
    ],
)
def test_axis_of_one_key(monkeypatch, make_measurement, values, places):
    calls = []
    monkeypatch.setattr("dflash.evaluation.combine.sweep_plot", lambda *args, **kwargs: calls.append((args, kwargs)))
    combined_plot([Job(str(i), {"k": v}, [make_measurement()]) for i, v in enumerate(values)], ["k"], title="t")
    assert calls[0][0][0] == places and calls[0][1] == {"title": "t", "key": "k"}


def test_axis_of_two_keys(monkeypatch, make_measurement):
    calls = []
    monkeypatch.setattr("dflash.evaluation.combine.sweep_plot", lambda *args, **kwargs: calls.append(args))
    jobs = [Job("0", {"draft.depth": 2, "taps": "late"}, [make_measurement()]), Job("1", error="failed")]
    combined_plot(jobs, ["draft.depth", "taps"], title="t")
    assert calls[0][0] == ["depth=2\ntaps=late"]


def test_series_follow_what_varies_inside_a_job(make_measurement):
    jobs = [
        Job(str(i), {}, [make_measurement(temperature=t), make_measurement(temperature=t, batch_size=8)])
        for i, t in enumerate((0.0, 1.0))
    ]
    jobs.append(Job("2", {}, [make_measurement(), make_measurement(), {"label": None}]))
    series = series_of(jobs)
    names = ["trained draft, batch 1", "trained draft, batch 8", "trained draft, batch 1 (2)", "draft"]
    assert list(series) == names
    assert [m and m["temperature"] for m in series[names[0]]] == [0.0, 1.0, 0.0]
    assert [m is None for m in series[names[3]]] == [True, True, False]
