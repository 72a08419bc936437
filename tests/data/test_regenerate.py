"""Regeneration continues where it stopped, never serves a stale or damaged answer, and keeps prompt order."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet
import pytest

from dflash.data.prompts import Prompt
from dflash.data.regenerate import cache_folder, regenerate

FINGERPRINT = {"target": "tiny", "temperature": 1.0, "seed": 0, "max_new_tokens": 8}
PROMPTS = [Prompt(tuple(range(i, i + 3 + i % 4)), f"p{i}", "completion", "") for i in range(23)]


class Sampler:
    """Stands for the target's decoder: ragged responses, random but keyed by the prompt's index."""

    def __init__(self, *, fail_at: int | None = None):
        self.calls: list[int] = []
        self.num_given = 0
        self.fail_at = fail_at

    def __call__(self, prompts, numbers):
        self.calls.append(numbers[0])
        responses = []
        for place, (number, prompt) in enumerate(zip(numbers, prompts, strict=True)):
            rng = random.Random(f"{number} {prompt}")
            responses.append((place, tuple(rng.randrange(1000) for _ in range(rng.randrange(6)))))
        for response in sorted(responses, key=lambda item: len(item[1])):  # short ones are done first
            if self.num_given == self.fail_at:
                raise KeyboardInterrupt
            self.num_given += 1
            yield response


def run(tmp_path, sampler, *, prompts=PROMPTS, fingerprint=FINGERPRINT, **changes):
    options = {"shard_size": 8, **changes}
    return regenerate(prompts, generate=sampler, fingerprint=fingerprint, cache_dir=tmp_path, **options)


def plain(documents):
    return [(d.ids.tolist(), d.supervised.tolist(), d.origin) for d in documents]


def shards(tmp_path, **changes):
    options = {"prompts": PROMPTS, "fingerprint": FINGERPRINT, **changes}
    folder = cache_folder(options["prompts"], fingerprint=options["fingerprint"], cache_dir=tmp_path)
    return sorted(folder.glob("*.parquet"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return plain(run(tmp_path_factory.mktemp("whole"), Sampler()))


def test_documents_are_prompt_then_response_in_order(expected):
    responses = [response for _, response in sorted(Sampler()([list(p.ids) for p in PROMPTS], range(23)))]
    for prompt, response, (ids, supervised, origin) in zip(PROMPTS, responses, expected, strict=True):
        assert ids == [*prompt.ids, *response]
        assert supervised == [False] * len(prompt.ids) + [True] * len(response)
        assert origin == prompt.name


def test_calls_are_shards_and_progress_is_told(tmp_path):
    sampler, told = Sampler(), []
    run(tmp_path, sampler, progress=lambda *numbers: told.append(numbers))
    assert sampler.calls == [0, 8, 16]
    assert told == [(done, 23) for done in range(24)]
    told.clear()
    run(tmp_path, sampler, progress=lambda *numbers: told.append(numbers))
    assert told == [(0, 23), (8, 23), (16, 23), (23, 23)]


def test_cache_is_used(tmp_path, expected):
    run(tmp_path, Sampler())
    again = Sampler()
    assert plain(run(tmp_path, again)) == expected
    assert again.calls == []


@pytest.mark.parametrize("fail_at", [0, 3, 7, 8, 15, 16, 22])
def test_interrupted_run_continues(tmp_path, expected, fail_at):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Sampler(fail_at=fail_at))
    assert len(shards(tmp_path)) == fail_at // 8
    again = Sampler()
    assert plain(run(tmp_path, again)) == expected
    assert again.calls[0] == 8 * (fail_at // 8)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


@pytest.mark.parametrize("damage", ["truncate", "empty", "swap", "column"])
def test_damaged_shard_is_generated_again(tmp_path, expected, damage, caplog):
    run(tmp_path, Sampler())
    first, second, _ = shards(tmp_path)
    content = second.read_bytes()
    if damage == "truncate":
        second.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        second.write_bytes(b"")
    elif damage == "swap":
        second.write_bytes(first.read_bytes())
    else:
        pyarrow.parquet.write_table(pyarrow.parquet.ParquetFile(first).read().drop_columns("response"), second)
    again = Sampler()
    assert plain(run(tmp_path, again)) == expected
    assert again.calls == [8]
    assert second.name in caplog.text
    assert second.read_bytes() == content


def test_no_flipped_bit_changes_an_answer(tmp_path, expected):
    run(tmp_path, Sampler())
    second = shards(tmp_path)[1]
    content = second.read_bytes()
    seen = 0
    for place in range(0, len(content), 5):
        second.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        again = Sampler()
        assert plain(run(tmp_path, again)) == expected
        seen += bool(again.calls)
    assert seen > 0.5 * len(content) / 5  # most bytes matter; the others are statistics and names of the writer


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": {**FINGERPRINT, "seed": 1}},
        {"fingerprint": {**FINGERPRINT, "target": "other"}},
        {"fingerprint": {**FINGERPRINT, "more": None}},
        {"prompts": PROMPTS[:-1]},
        {"prompts": [*PROMPTS[:-1], Prompt((7,), "p22", "completion", "")]},
        {"prompts": PROMPTS[::-1]},
    ],
)
def test_changed_input_makes_a_new_cache(tmp_path, change):
    run(tmp_path, Sampler())
    sampler = Sampler()
    run(tmp_path, sampler, **change)
    assert len(sampler.calls) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_key_order_and_shard_size_are_not_inputs(tmp_path, expected):
    run(tmp_path, Sampler())
    reordered = Sampler()
    assert plain(run(tmp_path, reordered, fingerprint=dict(reversed(FINGERPRINT.items())))) == expected
    assert reordered.calls == []
    assert plain(run(tmp_path, Sampler(), shard_size=5)) == expected
    assert plain(run(tmp_path, reordered)) == expected  # shards of another size do not disturb the first
    assert reordered.calls == []
    assert len(list(tmp_path.iterdir())) == 1


def test_processes_share_the_work(tmp_path, expected):
    """Three over one folder: each shard is written once, each process gets all documents."""
    samplers, options = [Sampler() for _ in range(3)], {"world": 3, "patience": 60.0}
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(run, tmp_path, s, rank=i, **options) for i, s in enumerate(samplers)]
        assert all(plain(finished.result()) == expected for finished in runs)
    assert [sampler.calls for sampler in samplers] == [[0], [8], [16]]


def test_shards_of_processes_that_are_not_there_are_written_all_the_same(tmp_path, expected):
    seen, sampler = [], Sampler()
    report = lambda done, total: seen.append(done)  # noqa: E731
    made = run(tmp_path, sampler, rank=1, world=3, patience=0.1, progress=report)
    assert plain(made) == expected
    assert sampler.calls == [8, 0, 16] and seen == list(range(24))


def test_manifest_holds_everything(tmp_path):
    run(tmp_path, Sampler())
    manifest = json.loads((shards(tmp_path)[0].parent / "manifest.json").read_text())
    assert {k: v for k, v in manifest.items() if k != "prompts_sha256"} == FINGERPRINT
    assert len(manifest["prompts_sha256"]) == 64


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="plain JSON values"):
        run(tmp_path, Sampler(), fingerprint={"target": object()})
    with pytest.raises(ValueError, match="1 responses to 8 prompts"):
        run(tmp_path, lambda prompts, numbers: [(1, (1,))])
    with pytest.raises(ValueError, match="shard_size=0"):
        run(tmp_path, Sampler(), shard_size=0)
