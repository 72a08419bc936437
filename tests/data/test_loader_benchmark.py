"""benchmarks/loader.py: its sums on a loader whose tokens and waits are known, and the real loader end to end."""

from __future__ import annotations

import io
import json
import time

import pytest
from loader import Plan, make_step, open_loader, show, throughput, waiting
from rich.console import Console
from toys import packed_batch

from dflash.data.mixture import FileSource
from dflash.target.reading import Reading

PLAN = Plan(length=20, batch=2, batches=5, step_seconds=0.01, steps=6, busy=False, buffer_rows=4)


def batches(wait: float):
    batch = packed_batch([[(4, 6)], [(5, 10)]], length=20)
    k = 0
    while True:
        time.sleep(wait)
        yield k, batch
        k += 1


def test_sums():
    found = throughput(batches(0.002), PLAN)
    assert found["fill"] == (10 + 15) / 40
    assert found["supervised_tokens_per_second"] / found["tokens_per_second"] == pytest.approx(16 / 25)
    assert found["tokens_per_second"] < 25 / 0.002


def test_waiting_is_what_the_loop_sees():
    idle, late = (waiting(batches(wait), make_step(PLAN), PLAN) for wait in (0.0, 0.01))
    assert late["waiting_share"] >= 0.5 - 1e-9 and late["longest_wait_seconds"] >= late["median_wait_seconds"] >= 0.01
    assert idle["median_wait_seconds"] < 0.01


def test_the_real_loader(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"def f{i}(x):\n    return x"}) + "\n" for i in range(50)))
    reading = Reading(tokenizer, (tokenizer.eos_token_id,))
    sources = {"only": FileSource(path=str(path))}
    fast = throughput(iter(open_loader(sources, reading, PLAN, workers=0)), PLAN)
    assert 0.3 < fast["fill"] <= 1
    slow = waiting(iter(open_loader(sources, reading, PLAN, workers=0)), make_step(PLAN), PLAN)
    out = io.StringIO()
    show({"plan": vars(PLAN), "workers": {"0": fast | slow}}, Console(file=out, width=160))
    assert "takes 4,000 tokens/s" in out.getvalue() and f"{100 * fast['fill']:.1f} %" in out.getvalue()
