"""benchmarks/on_gpu.py at toy sizes: parts really run, and one that fails or runs out of time stops no other."""

from __future__ import annotations

import json

import on_gpu
import pytest


@pytest.mark.slow
def test_parts_run_in_turn_and_the_table_comes_last(tmp_path, capsys):
    assert on_gpu.main(["--small", "--parts", "tests", "attention", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "on_gpu.json").read_text())
    assert [(part["name"], part["code"]) for part in result["parts"]] == [("tests", 0), ("attention", 0)]
    assert "passed" in (tmp_path / "tests/log.txt").read_text()
    assert json.loads((tmp_path / "attention/attention.json").read_text())
    printed = capsys.readouterr().out.rstrip().splitlines()
    assert printed[-1].startswith("└") and any("what ran" in line for line in printed)


def test_a_part_that_fails_and_one_out_of_time_stop_no_other(tmp_path, monkeypatch, capsys):
    parts = {"fails": "raise SystemExit(3)", "hangs": "import time; time.sleep(60)", "runs": "print('here')"}
    weights = {"fails": 1, "hangs": 1, "runs": 8}
    made = {name: on_gpu.Part((), ("-c", code), weights[name]) for name, code in parts.items()}
    monkeypatch.setattr(on_gpu, "PARTS", made)
    console = on_gpu.wide_console()
    outcomes = on_gpu.run(list(parts), minutes=0.25, small=True, folder=tmp_path, console=console)
    assert [outcome.code for outcome in outcomes] == [3, None, 0] and outcomes[2].tail == ["here"]
    on_gpu.show(outcomes, console)
    shown = capsys.readouterr().out
    assert "exit code 3" in shown and "out of time" in shown and "done" in shown


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert on_gpu.main([]) == 1
    assert capsys.readouterr().err == (
        "--device cuda: no CUDA GPU is visible here; use a machine that has one, or --small\n"
    )


@pytest.mark.parametrize("name", sorted(on_gpu.PARTS))
def test_every_command_is_one_that_its_script_takes(name):
    """The full command differs from the one that was run above; its script still parses it."""
    command = [word.format(out="folder", root="root", minutes="1") for word in on_gpu.PARTS[name].command]
    if command[0].endswith(".py"):
        script = __import__(command[0].rpartition("/")[2].removesuffix(".py"))
        script.parse(command[1:])
