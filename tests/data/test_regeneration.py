"""Regeneration through a real server that misbehaves: no prompt lost, none doubled, also over a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from flaky_server import STOP_TOKEN, answer_to, serve

from dflash.data.regeneration.backoff import Backoff
from dflash.data.regeneration.engine import Answer, EngineError, Failure, Question
from dflash.data.regeneration.folder import ResponseFolder, read_manifest
from dflash.data.regeneration.local import LocalEngine
from dflash.data.regeneration.run import regenerate_set
from dflash.data.regeneration.server import ServerCall, ServerEngine

COUNT, SHARD = 150, 16
QUICK = Backoff(attempts=4, first_seconds=0.001, most_seconds=0.004)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def question(index: int) -> Question:
    """Every tenth repeats the prompt before it."""
    return Question(index, f"q{index}", ((index - 1 if index % 10 == 9 else index), 3, 1))


def questions(count: int = COUNT):
    return (question(i) for i in range(count))


def engine(server, **changes) -> ServerEngine:
    call = ServerCall(model="m", max_new_tokens=8, stop_token_ids=(STOP_TOKEN,), seed=5, sampling={"temperature": 1.0})
    options = {
        "call": call,
        "encode": lambda text: [int(word) for word in text.split()],
        "stop_token_id": STOP_TOKEN,
        "concurrency": 8,
        "timeout_seconds": 30,
        "backoff": QUICK,
    }
    return ServerEngine(url=server.url, **{**options, **changes})


def run(path, server, *, count: int = COUNT, shard_size: int = SHARD, watch=None, keep_truncated=True, **changes):
    made = engine(server, **changes)
    folder = ResponseFolder(path, identity=made.identity())
    options = {"shard_size": shard_size, "keep_truncated": keep_truncated, "watch": watch}
    return regenerate_set(questions(count), made, folder, **options)


def rows(path) -> list[dict]:
    files = sorted(Path(path, "responses").glob("*.parquet"))
    return [row for file in files for row in pyarrow.parquet.ParquetFile(file).read().to_pylist()]


def left_out(path) -> dict[int, str]:
    lines = Path(path, "left_out.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    found = {entry["index"]: entry["reason"] for entry in entries}
    assert len(found) == len(entries)
    return found


def expected(count: int = COUNT) -> tuple[list[dict], dict[int, str]]:
    """What the server's answers make of the questions, worked out without it."""
    answered, missing = [], {}
    for i in range(count):
        ids, reason = answer_to([i])
        if i % 10 == 9:
            missing[i] = "duplicate"
        elif i % 23 == 2:
            missing[i] = "HTTP 400"
        elif reason == "content_filter":
            missing[i] = "finish_reason content_filter"
        elif ids == [STOP_TOKEN]:
            missing[i] = "empty"
        else:
            row = {"index": i, "name": f"q{i}", "prompt_ids": [i, 3, 1], "response_ids": ids, "finish": reason}
            answered.append({**row, "exact": True})
    return answered, missing


def test_every_prompt_has_one_outcome_whatever_the_server_does(tmp_path):
    with serve(delay=0.01) as server:
        tally = run(tmp_path, server)
    answered, missing = expected()
    assert rows(tmp_path) == answered
    assert left_out(tmp_path) == missing
    assert set(missing.values()) == {"duplicate", "HTTP 400", "empty", "finish_reason content_filter"}
    assert tally.num_prompts == COUNT and tally.num_answered == len(answered) and not tally.failures
    assert tally.num_truncated == sum(row["finish"] == "length" for row in answered) > 0
    assert tally.num_duplicates == COUNT // 10
    assert json.loads((tmp_path / "report.json").read_text()) == tally.report()
    assert server.order != sorted(server.order)  # it did answer out of order
    assert max(server.delivered.values()) == 1 and max(server.attempts.values()) == 2
    assert 1 < server.most_at_once <= 8
    assert all(len(seeds) == 1 for seeds in server.seeds.values())  # asking again asks the same
    assert len({seed for seeds in server.seeds.values() for seed in seeds}) == len(server.seeds)


def test_shards_do_not_depend_on_the_order_of_answers(tmp_path):
    with serve(troubles=False) as quiet, serve(delay=0.01) as flaky:
        run(tmp_path / "one", quiet, concurrency=1)
        run(tmp_path / "many", flaky)
    for file in (tmp_path / "one/responses").iterdir():
        assert file.read_bytes() == (tmp_path / "many/responses" / file.name).read_bytes()


KILLED = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_regeneration import run
    run({path!r}, type("Address", (), {{"url": {url!r}}}))
"""


def test_a_killed_run_goes_on_exactly(tmp_path):
    path = tmp_path / "set"
    with serve(delay=0.02) as server:
        server.enough_at = COUNT // 2
        script = textwrap.dedent(KILLED.format(tests=str(Path(__file__).parent), path=str(path), url=server.url))
        child = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.getcwd()})
        assert server.enough.wait(120)
        child.send_signal(signal.SIGKILL)
        child.wait()
        partial = sorted((path / "partial").glob("*.jsonl"))
        kept = {json.loads(line)["index"] for file in partial for line in file.read_text().split("\n")[:-1]}
        shards = sorted((path / "responses").glob("*.parquet"))
        kept |= {row["index"] for row in rows(path)}
        assert shards and partial and not (path / "report.json").exists()
        with partial[0].open("a") as journal:
            journal.write('{"index": 3, "question": "x", "tok')  # a line that the kill cut off
        before = set(server.attempts)
        server.attempts.clear()
        tally = run(path, server)
    answered, missing = expected()
    assert rows(path) == answered and left_out(path) == missing
    assert tally.num_prompts == COUNT and tally.num_known >= len(kept) > COUNT // 4
    assert not kept & set(server.attempts)  # what was kept is not asked again
    assert before | set(server.attempts) == {i for i in range(COUNT) if i % 10 != 9}
    assert not (path / "partial").exists()


def test_a_finished_set_asks_nothing_and_more_prompts_extend_it(tmp_path):
    with serve(troubles=False) as server:
        run(tmp_path, server, count=40)
        assert rows(tmp_path) == expected(40)[0]
        server.attempts.clear()
        run(tmp_path, server, count=40)
        assert not server.attempts
        run(tmp_path, server, count=60)
        assert set(server.attempts) == {i for i in range(40, 60) if i % 10 != 9}
    assert (rows(tmp_path), left_out(tmp_path)) == expected(60)


def test_a_damaged_shard_is_made_again(tmp_path, caplog):
    with serve(troubles=False) as server:
        run(tmp_path, server)
        second = sorted((tmp_path / "responses").iterdir())[1]
        content = second.read_bytes()
        second.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
        server.attempts.clear()
        run(tmp_path, server)
        assert set(server.attempts) == {i for i in range(SHARD, 2 * SHARD) if i % 10 != 9}
    assert second.read_bytes() == content and second.name in caplog.text


def test_a_server_that_is_gone_ends_the_run_and_keeps_what_there_is(tmp_path):
    with serve(troubles=False) as server:

        def watch(tally):
            server.down = tally.num_answered >= 30

        with pytest.raises(EngineError, match=r"8 prompts in a row got no answer, the last one HTTP 503"):
            made = engine(server, backoff=Backoff(attempts=2, first_seconds=0, most_seconds=0))
            folder = ResponseFolder(tmp_path, identity=made.identity())
            regenerate_set(questions(), made, folder, shard_size=SHARD, give_up_after=8, watch=watch)
        server.down = False
        server.attempts.clear()
        tally = run(tmp_path, server)
        assert tally.num_known >= 30 and len(server.attempts) <= COUNT * 0.9 - 30
    assert (rows(tmp_path), left_out(tmp_path)) == expected()


def test_failed_prompts_stay_open_or_are_accepted(tmp_path):
    class Stubborn(LocalEngine):
        def answers(self, asked):
            for question in asked:
                yield question, Failure("HTTP 500", "boom") if question.index == 4 else Answer((1, STOP_TOKEN), "stop")

    made = Stubborn(lambda ids, numbers: [], identity={}, batch_size=1, stop_token_ids=[STOP_TOKEN])
    folder = ResponseFolder(tmp_path, identity={})
    tally = regenerate_set(questions(9), made, folder, shard_size=3)
    assert tally.failures == {"HTTP 500": 1} and tally.num_prompts == 8
    assert not (tmp_path / "report.json").exists() and len(rows(tmp_path)) == 6  # the second shard waits
    tally = regenerate_set(questions(9), made, folder, shard_size=3, accept_failures=True)
    assert tally.refusals == {"HTTP 500": 1} and left_out(tmp_path) == {4: "HTTP 500"}


def test_what_no_retry_can_mend_ends_the_run_at_once(tmp_path):
    with serve(troubles=False) as server:
        server.unknown_model = True
        with pytest.raises(EngineError, match=r"HTTP 404 to model 'm' .*no such model.*; check engine.url"):
            run(tmp_path, server)
    with serve(troubles=False, token_ids=False) as server:
        with pytest.raises(EngineError, match=r"returns text and no token ids; .*engine.accept_text=true"):
            run(tmp_path / "text", server)
        tally = run(tmp_path / "text", server, accept_text=True)
    assert tally.num_encoded_again == tally.num_answered > 100
    assert not any(row["exact"] for row in rows(tmp_path / "text"))
    assert [row["response_ids"] for row in rows(tmp_path / "text")] == [row["response_ids"] for row in expected()[0]]


def test_truncated_responses_can_be_left_out(tmp_path):
    with serve(troubles=False) as server:
        tally = run(tmp_path, server, keep_truncated=False)
    assert tally.num_truncated == 0 and tally.refusals["truncated"] == list(left_out(tmp_path).values()).count(
        "truncated"
    )
    assert {row["finish"] for row in rows(tmp_path)} == {"stop"}


def test_another_identity_or_source_is_refused(tmp_path):
    with serve(troubles=False) as server:
        run(tmp_path, server)
        with pytest.raises(ValueError, match=r"was begun with model 'm' \(now 'n'\)"):
            ResponseFolder(tmp_path, identity={"engine": "server", "model": "n"})
        made = engine(server)
        folder = ResponseFolder(tmp_path, identity=made.identity())
        with pytest.raises(ValueError, match="answers other prompts than the source now gives"):
            regenerate_set((Question(i, "other", (i,)) for i in range(COUNT)), made, folder, shard_size=SHARD)
        with pytest.raises(ValueError, match="answers other prompts than the source now gives"):
            regenerate_set(questions(), made, folder, shard_size=SHARD + 1)
    assert read_manifest(tmp_path)["identity"] == {"engine": "server", "model": "m"}
    with pytest.raises(ValueError, match="no folder of regenerated responses"):
        read_manifest(tmp_path / "responses")


def test_two_runs_never_write_to_one_folder(tmp_path):
    with serve(troubles=False) as server:

        def watch(tally):
            if tally.num_answered >= 3 and not told:
                with pytest.raises(ValueError, match=r"another run writes there; wait for it"):
                    run(tmp_path, server)
                told.append(tally.num_answered)

        told = []
        run(tmp_path, server, watch=watch)
    assert len(told) == 1 and rows(tmp_path) == expected()[0] and max(server.delivered.values()) == 1


def test_local_calls_are_several_batches_whatever_numbers_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("dflash.data.regeneration.local.BATCHES_A_CALL", 4)
    calls = []

    def generate(prompts, numbers):
        calls.append(numbers)
        return [(i, (*ids, STOP_TOKEN) if ids[0] % 2 else ids) for i, ids in reversed(list(enumerate(prompts)))]

    made = LocalEngine(generate, identity={}, batch_size=2, stop_token_ids=[STOP_TOKEN])
    tally = regenerate_set(questions(30), made, ResponseFolder(tmp_path, identity={}), shard_size=12)
    asked = [i for i in range(30) if i % 10 != 9]  # the others are duplicates
    assert calls == [asked[:8], asked[8:16], asked[16:24], asked[24:]]
    assert tally.num_truncated == sum(i % 2 == 0 for i in range(30) if i % 10 != 9)
    assert [row["response_ids"][:3] for row in rows(tmp_path)] == [row["prompt_ids"] for row in rows(tmp_path)]
    with pytest.raises(ValueError, match=r"engine.batch_size=0"):
        LocalEngine(generate, identity={}, batch_size=0, stop_token_ids=[])


def test_waiting_doubles_with_jitter_and_obeys_the_server():
    backoff = Backoff(attempts=9, first_seconds=1, most_seconds=60)
    waits = [[backoff.seconds(n, np.random.default_rng(seed)) for n in range(9)] for seed in range(50)]
    for n in range(9):
        full = min(60, 2**n)
        assert all(full / 2 <= wait[n] <= full for wait in waits) and len({wait[n] for wait in waits}) == 50
    rng = np.random.default_rng(0)
    assert backoff.seconds(0, rng, retry_after="120") == 120
    assert backoff.seconds(0, rng, retry_after="1e9") == 600
    assert backoff.seconds(0, rng, retry_after="Wed, 01 Jan 2020 00:00:00 GMT") <= 1
    assert backoff.seconds(0, rng, retry_after="Wed, 01 Jan 2120 00:00:00 GMT") == 600
    assert backoff.seconds(0, rng, retry_after="soon") <= 1
    with pytest.raises(ValueError, match=r"engine.backoff.attempts=0"):
        Backoff(attempts=0)


def test_user_mistakes():
    call = ServerCall(model="m", max_new_tokens=8, stop_token_ids=(STOP_TOKEN,))
    with pytest.raises(ValueError, match=r"engine.url=localhost:8000: must begin with http"):
        ServerEngine(url="localhost:8000", call=call, encode=list, stop_token_id=0)
    with pytest.raises(ValueError, match=r"engine.concurrency=0"):
        ServerEngine(url="http://x/v1", call=call, encode=list, stop_token_id=0, concurrency=0)
