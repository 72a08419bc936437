"""Batch k is a pure function of (seed, k, rank, world), in memory and streamed."""

from __future__ import annotations

import os
import pickle
from itertools import islice

import numpy as np
import pytest
import torch

from dflash.data.documents import Document
from dflash.data.pack import collate, pack, split_document
from dflash.data.stream import BatchStream, IndexSampler, MappedRows, StreamedRows


def document(number: int, size: int = 4) -> Document:
    return Document(np.full(size, number, dtype=np.int32), np.arange(size) > 0, f"d{number}")


ROWS = [(document(i),) for i in range(1, 24)]


def open_rows():
    return iter(ROWS)


def sources():
    return {"mapped": MappedRows(ROWS, 5), "streamed": StreamedRows(open_rows, 5, buffer_rows=6)}


def numbers(source, indices) -> list[int]:
    return [int(source.row(i)[0].ids[0]) for i in indices]


@pytest.mark.parametrize("kind", ["mapped", "streamed"])
def test_rows_do_not_depend_on_what_was_asked_before(kind):
    straight = numbers(sources()[kind], range(100))
    order = np.random.default_rng(0).permutation(100)
    assert numbers(sources()[kind], order) == [straight[i] for i in order]
    again = sources()[kind]
    assert numbers(again, [99, 99, 0, 50]) == [straight[99], straight[99], straight[0], straight[50]]


@pytest.mark.parametrize("kind", ["mapped", "streamed"])
def test_every_epoch_holds_every_row_in_a_new_order(kind):
    epochs = np.reshape(numbers(sources()[kind], range(23 * 3)), (3, 23))
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(1, 24), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_streamed_rows_read_no_further_than_they_must():
    read = []

    def rows():
        for number in range(10**9):
            read.append(number)
            yield (document(number),)

    source = StreamedRows(rows, 0, buffer_rows=8)
    numbers(source, range(20))
    assert len(read) == 20 + 8  # what was given and what is in the buffer
    numbers(source, [30])
    assert len(read) == 31 + 8
    numbers(source, [30])  # behind the position: from the start
    assert len(read) == 2 * (31 + 8)


def test_streamed_rows_survive_pickle_and_fork(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("".join(f"{i % 250:8d}\n" for i in range(5000)))  # more than one buffer of the file

    def read_file():
        with path.open() as lines:
            for line in lines:
                yield (document(int(line)),)

    straight = numbers(StreamedRows(read_file, 5, buffer_rows=6), range(4000))
    source = StreamedRows(read_file, 5, buffer_rows=6)
    numbers(source, range(10))
    child = os.fork()
    if not child:  # a worker: what it reads must not move the file under its parent
        os._exit(numbers(source, range(10, 4000)) != straight[10:])
    assert os.waitpid(child, 0)[1] == 0
    assert numbers(source, range(10, 4000)) == straight[10:]

    plain = StreamedRows(open_rows, 5, buffer_rows=6)
    straight = numbers(plain, range(40))
    assert numbers(pickle.loads(pickle.dumps(plain)), range(40)) == straight


def test_no_rows():
    with pytest.raises(ValueError, match="no rows to train on"):
        MappedRows([], 0)
    with pytest.raises(ValueError, match="no rows to train on"):
        StreamedRows(lambda: iter(()), 0).row(0)
    with pytest.raises(ValueError, match="buffer_rows=0"):
        StreamedRows(open_rows, 0, buffer_rows=0)


@pytest.mark.parametrize("kind", ["mapped", "streamed"])
def test_ranks_share_what_one_rank_reads(kind):
    sizes = {"length": 5, "pad_id": 99}
    whole = BatchStream(sources()[kind], batch_size=6, **sizes)
    parts = [BatchStream(sources()[kind], batch_size=2, rank=r, world=3, **sizes) for r in range(3)]
    for k in (0, 7, 3):
        together = torch.cat([part[k][1].ids_BS for part in parts])
        assert torch.equal(together, whole[k][1].ids_BS)
        assert all(part[k][0] == k for part in parts)


def test_collate():
    batch = collate([(document(1, 2), document(2, 3)), (document(3, 1),)], length=6, pad_id=9)
    assert batch.ids_BS.tolist() == [[1, 1, 2, 2, 2, 9], [3, 9, 9, 9, 9, 9]]
    assert batch.documents_BS.tolist() == [[0, 0, 1, 1, 1, -1], [0, -1, -1, -1, -1, -1]]
    assert batch.positions_BS.tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6]
    assert batch.supervised_BS.int().tolist() == [[0, 1, 0, 1, 1, 0], [0] * 6]
    assert batch.num_tokens == 6


@pytest.mark.parametrize("num_open", [1, 4, 64])
def test_pack_keeps_every_document_whole_and_once(num_open):
    sizes = np.random.default_rng(0).integers(1, 33, size=200)
    documents = [document(i, int(size)) for i, size in enumerate(sizes)]
    rows = list(pack(documents, length=32, num_open=num_open))
    assert all(sum(len(d) for d in row) <= 32 for row in rows)
    assert sorted(d.origin for row in rows for d in row) == sorted(d.origin for d in documents)
    assert len(rows) <= (1.1 if num_open == 64 else 1.6) * sizes.sum() / 32
    with pytest.raises(ValueError, match=r"d0 has 33 tokens and data.length=32"):
        list(pack([document(0, 33)], length=32))


def test_split_document():
    pieces = split_document(Document(np.arange(10, dtype=np.int32), np.arange(10) > 4), length=4)
    assert [p.ids.tolist() for p in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [p.supervised.tolist() for p in pieces] == [[False] * 4, [False, True, True, True], [True, True]]


def test_sampler_asks_for_its_start_when_iteration_begins():
    step = 0
    sampler = IndexSampler(lambda: step)
    step = 7
    assert list(islice(sampler, 3)) == [7, 8, 9]
    step = 2
    assert list(islice(sampler, 2)) == [2, 3]
    assert len(sampler) == 2**40
