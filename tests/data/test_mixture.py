"""Mixtures keep their shares, depend on nothing but their seed, and are shared out over ranks and workers."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dflash.assemble.data import FileData, MixtureData
from dflash.data.mixture import FileSource, mix
from dflash.data.shapes import Instruction
from dflash.data.stream import BatchStream, IndexSampler, LanedRows
from dflash.target.reading import Reading

LENGTH, BATCH = 24, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three data sets of different sizes and shapes; each row says whose it is and which."""
    path = tmp_path_factory.mktemp("sets")
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]
    rows = {
        "many": [{"text": f"aa{i}"} for i in range(300)],
        "few": [{"instruction": "q", "input": "", "output": f"bb{i}"} for i in range(40)],
        "chats": [{"messages": [chat[0], {**chat[1], "content": f"cc{i}"}]} for i in range(90)],
    }
    for name, lines in rows.items():
        path.joinpath(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sources(folder, **weights):
    few = FileSource(path=str(folder / "few.jsonl"), shape=Instruction(), weight=weights.get("few", 1))
    return {
        "many": FileSource(path=str(folder / "many.jsonl"), weight=weights.get("many", 5)),
        "few": few,
        "chats": FileSource(path=str(folder / "chats.jsonl"), weight=weights.get("chats", 2)),
    }


def recipe(folder, **changes) -> MixtureData:
    options = {"sources": sources(folder), "seed": 3, "length": LENGTH, "batch_size": BATCH, "buffer_rows": 16}
    return MixtureData(**{**options, **changes})


def opened(folder, tokenizer, **changes):
    return recipe(folder, **changes).open(Reading(tokenizer, (tokenizer.eos_token_id,)), lambda *_: None)


def test_shares_are_the_weights_and_small_sources_begin_again():
    streams = {name: partial(iter, [name] * size) for name, size in (("a", 7), ("b", 1000), ("off", 0))}
    weights = {"a": 3.0, "b": 1.0, "off": 0.0}
    found = Counter(islice(mix(streams, weights, rng=np.random.default_rng(0)), 4000))
    assert abs(found["a"] - 3000) < 4 * math.sqrt(4000 * 0.75 * 0.25) and found["off"] == 0
    again = list(islice(mix(streams, weights, rng=np.random.default_rng(0)), 100))
    assert again == list(islice(mix(streams, weights, rng=np.random.default_rng(0)), 100))
    assert again != list(islice(mix(streams, weights, rng=np.random.default_rng(1)), 100))


def test_user_mistakes(folder):
    with pytest.raises(ValueError, match=r"data.sources.a: yields no usable document"):
        next(mix({"a": partial(iter, [])}, {"a": 1.0}, rng=np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"data.sources.few.weight=-1: must be a number of at least 0"):
        recipe(folder, sources=sources(folder, few=-1))
    with pytest.raises(ValueError, match=r"none of many, few, chats has a weight above 0"):
        recipe(folder, sources=sources(folder, few=0, many=0, chats=0))
    with pytest.raises(ValueError, match=r"data.streaming=false: a mixture has no end"):
        recipe(folder, streaming=False)
    with pytest.raises(ValueError, match=r"data.lanes=2: only a streamed source is shared out"):
        FileData(path="x", length=8, batch_size=1, lanes=2).module(list, pad_id=0, seed=0, accumulate=1)


def test_documents_of_all_shapes(folder, tokenizer):
    documents = list(islice(opened(folder, tokenizer)(), 400))
    kinds = Counter(document.origin.split("/")[-1].split(".")[0] for document in documents)
    assert kinds["many"] > kinds["chats"] > kinds["few"] > 20
    sampled = {tokenizer.decode(d.ids[d.supervised].tolist()) for d in documents if "few" in d.origin}
    assert "<|channel|>final<|message|>bb0<|return|>" in sampled
    sent = pickle.loads(pickle.dumps(opened(folder, tokenizer)))  # as a spawned worker gets it
    assert [d.origin for d in islice(sent(), 20)] == [d.origin for d in documents[:20]]
    questions = list(recipe(folder).questions(Reading(tokenizer, ()), max_tokens=None, count=50))
    assert len(questions) == 50 and {q.kind for q in questions} == {"chat", "completion"}
    with pytest.raises(ValueError, match="count=null: a mixture has no end"):
        recipe(folder).questions(Reading(tokenizer, ()), max_tokens=None, count=None)


def stream(folder, tokenizer, *, rank=0, world=1, lanes=4, seed=0) -> BatchStream:
    data = recipe(folder, lanes=lanes)
    module = data.module(opened(folder, tokenizer, lanes=lanes), pad_id=0, seed=seed, accumulate=1)
    module.setup()
    return BatchStream(module.rows, length=LENGTH, batch_size=BATCH, pad_id=0, rank=rank, world=world)


def test_batch_k_is_a_pure_function(folder, tokenizer):
    whole = stream(folder, tokenizer)
    straight = [whole[k][1].ids_BS for k in range(24)]
    order = np.random.default_rng(0).permutation(24).tolist()
    assert all(torch.equal(whole[k][1].ids_BS, straight[k]) for k in order[:8])
    assert torch.equal(stream(folder, tokenizer)[23][1].ids_BS, straight[23])  # a resumed run
    assert not torch.equal(stream(folder, tokenizer, seed=1)[0][1].ids_BS, straight[0])
    for world in (2, 3, 4):  # ranks take turns over the same batches, however many they are
        for rank in range(world):
            part = stream(folder, tokenizer, rank=rank, world=world)
            assert torch.equal(part[2][1].ids_BS, straight[2 * world + rank])


def test_workers_change_nothing(folder, tokenizer):
    straight = stream(folder, tokenizer)
    loader = DataLoader(
        straight, batch_size=None, sampler=IndexSampler(lambda: 5), num_workers=2, collate_fn=lambda batch: batch
    )
    found = list(islice(loader, 6))
    assert [k for k, _ in found] == [5, 6, 7, 8, 9, 10]
    assert all(torch.equal(batch.ids_BS, straight[k][1].ids_BS) for k, batch in found)


def test_each_process_reads_its_own_lanes_only():
    opened_lanes = []

    def open_rows(lane, lanes):
        opened_lanes.append((lane, lanes))
        return iter([(lane, n) for n in range(1000)])

    for rank in range(2):
        rows = LanedRows(open_rows, 0, lanes=4, batch_size=BATCH, buffer_rows=4)  # a row a lane: its own order
        turns = [divmod(k * 2 + rank, 4) for k in range(6)]
        read = [rows.row((k * 2 + rank) * BATCH + i) for k in range(6) for i in range(BATCH)]
        assert read == [(lane, turn * BATCH + i) for turn, lane in turns for i in range(BATCH)]  # none passed over
        assert {lane for lane, _ in read} == {rank, rank + 2}
    assert sorted(opened_lanes) == [(0, 4), (1, 4), (2, 4), (3, 4)]
