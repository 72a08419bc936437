"""Sources read what they should, in order, and name every bad line."""

from __future__ import annotations

import copy
import json

import pyarrow
import pyarrow.parquet
import pytest

from dflash.data.corpus import SourceFile
from dflash.data.rows import BadLines, file_rows, hub_rows, parse_row
from dflash.data.sources import corpus_documents, file_documents, hub_documents

CHAT = [{"role": "user", "content": "say x"}, {"role": "assistant", "content": "x"}]
GOOD = {"text": "import os\n"}
BAD = {  # reason -> line
    "not JSON": b'{"text": "x"',
    "not UTF-8": b'{"text": "\xff"}',
    "empty line": b"",
    "wrong type": b'{"text": 3}',
    "empty text": b'{"text": "  "}',
    "no text": b'{"body": "x"}',
    "unknown role": b'{"messages": [{"role": "wizard", "content": "x"}]}',
    "no assistant turn": b'{"messages": [{"role": "user", "content": "x"}]}',
    "over-long": json.dumps({"text": "word " * 200}).encode(),
}
MORE_BAD = [  # (line, what the message says)
    (b"[1, 2]", "wrong type: expected an object, found list"),
    (b'{"messages": "x"}', "wrong type: messages must be a list, found str"),
    (b'{"messages": []}', "empty text: messages is an empty list"),
    (b'{"messages": ["x"]}', r"wrong type: messages\[0\] must be an object, found str"),
    (b'{"messages": [{"role": "user", "content": ["x"]}]}', r"wrong type: messages\[0\].content must be a string"),
    (b'{"messages": [{"role": "user", "content": ""}]}', r"empty text: messages\[0\].content is empty"),
    (b'{"messages": [{"role": [], "content": "x"}]}', r"unknown role: messages\[0\].role=\[\]"),
    (rb'{"text": "\ud800"}', "not UTF-8: text holds half a surrogate pair"),
    (b'{"text": null}', "no text"),
    (b"[" * 100_000, "not JSON"),
]


def jsonl(path, rows):
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows) + b"\n")
    return path


def decode(tokenizer, documents):
    return [tokenizer.decode(d.ids.tolist()) for d in documents]


def test_corpus_leaves_held_out_files_alone(tokenizer):
    files = [
        SourceFile("a.py", "a = 1\n", False),
        SourceFile("b.py", "b = 1\n", True),
        SourceFile("c.py", "c\n", False),
    ]
    documents = list(corpus_documents(files, tokenizer))
    assert [d.origin for d in documents] == ["a.py", "c.py"]
    assert decode(tokenizer, documents) == ["a = 1\n", "c\n"]


def test_text_and_messages_rows(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", [GOOD, {"messages": CHAT}, {"text": None, "messages": CHAT}])
    text, chat, same = file_documents(path, tokenizer)
    assert text.supervised.tolist() == [False] + [True] * (len(text) - 1)
    sampled = tokenizer.decode(chat.ids[chat.supervised].tolist())
    assert sampled == "<|channel|>final<|message|>x<|return|>"
    assert same.ids.tolist() == chat.ids.tolist()
    assert [d.origin for d in (text, chat)] == [f"{path}:1", f"{path}:2"]


def test_parquet_equals_jsonl_and_a_folder_is_read_by_name(tmp_path, tokenizer):
    rows = [GOOD, {"messages": [CHAT[0], {**CHAT[1], "thinking": "t"}]}, {"text": "second"}]
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "b.jsonl", rows)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"text": None, "messages": None, **r} for r in rows]), folder / "a.parquet"
    )
    documents = list(file_documents(folder, tokenizer))
    assert [d.origin for d in documents] == [f"{folder}/{f}:{n}" for f in ("a.parquet", "b.jsonl") for n in (1, 2, 3)]
    for parquet, line in zip(documents[:3], documents[3:], strict=True):
        assert parquet.ids.tolist() == line.ids.tolist()
        assert parquet.supervised.tolist() == line.supervised.tolist()


@pytest.mark.parametrize("reason", BAD)
def test_bad_line_is_named(tmp_path, tokenizer, reason):
    path = jsonl(tmp_path / "a.jsonl", [GOOD, BAD[reason], GOOD])
    with pytest.raises(ValueError, match=f"a.jsonl:2: {reason}.*on_bad=skip"):
        list(file_documents(path, tokenizer, max_tokens=100))


@pytest.mark.parametrize(("line", "message"), MORE_BAD)
def test_bad_line_says_what_is_wrong(tmp_path, tokenizer, line, message):
    with pytest.raises(ValueError, match=f"a.jsonl:1: {message}"):
        list(file_documents(jsonl(tmp_path / "a.jsonl", [line]), tokenizer))


def test_skipped_lines_are_counted_once_each(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", [GOOD, *BAD.values(), GOOD, BAD["wrong type"]])
    bad_lines = BadLines()
    for _ in range(2):  # a second pass over the same file counts nothing twice
        documents = list(file_documents(path, tokenizer, max_tokens=100, on_bad="skip", bad_lines=bad_lines))
        assert [d.origin for d in documents] == [f"{path}:1", f"{path}:{len(BAD) + 2}"]
    assert bad_lines.counts == {**dict.fromkeys(BAD, 1), "wrong type": 2}
    assert bad_lines.total == len(BAD) + 1
    assert bad_lines.examples[0].startswith(f"{path}:2: not JSON")


def test_chat_the_template_refuses_is_a_bad_line(tmp_path, tokenizer):
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"a.jsonl:1: chat template: the chat template refuses .*roles must alternate"):
        list(file_documents(jsonl(tmp_path / "a.jsonl", [{"messages": CHAT}]), strict))


def test_user_mistakes_are_told_at_once(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", [GOOD])
    with pytest.raises(ValueError, match=r"data.on_bad='ignore' is none of raise, skip"):
        file_documents(path, tokenizer, on_bad="ignore")
    with pytest.raises(ValueError, match=r"nowhere.jsonl' does not exist"):
        file_documents(tmp_path / "nowhere.jsonl", tokenizer)
    with pytest.raises(ValueError, match=r"current_date='now'"):  # not counted as a bad line per row
        file_documents(path, tokenizer, on_bad="skip", options={"current_date": "now"})
    path.rename(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"holds no file ending in .jsonl"):
        file_documents(tmp_path / "a.csv", tokenizer)
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"b.parquet: not readable as Parquet"):
        list(file_documents(tmp_path / "b.parquet", tokenizer))


def test_hub_set_from_a_local_stand_in(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "stand_in"
    folder.mkdir()
    rows = [{"conversation": CHAT}, {"conversation": [{"role": "wizard", "content": "x"}]}, {"conversation": CHAT}]
    jsonl(folder / "train.jsonl", rows)
    bad_lines = BadLines()
    found = list(
        hub_documents(str(folder), tokenizer, columns={"messages": "conversation"}, on_bad="skip", bad_lines=bad_lines)
    )
    assert [d.origin for d in found] == [f"{folder}/train:1", f"{folder}/train:3"]
    assert bad_lines.counts == {"unknown role": 1}
    local = jsonl(tmp_path / "local.jsonl", [{"messages": CHAT}])
    assert found[0].ids.tolist() == next(iter(file_documents(local, tokenizer))).ids.tolist()
    with pytest.raises(ValueError, match=r"split='test'\) cannot be opened as a hub data set"):
        list(hub_documents(str(folder), tokenizer, split="test"))


def test_responses_as_token_ids(tmp_path, tokenizer):
    rows = [{"prompt_ids": [1, 2], "response_ids": [3, 4, 5], "text": "unread"}]
    (document,) = file_documents(jsonl(tmp_path / "a.jsonl", rows), tokenizer)
    assert document.ids.tolist() == [1, 2, 3, 4, 5] and document.supervised.tolist() == [False] * 2 + [True] * 3
    for bad in (
        {"prompt_ids": [1], "response_ids": ["a"]},
        {"response_ids": [1]},
        {"prompt_ids": [-1], "response_ids": []},
    ):
        with pytest.raises(ValueError, match="wrong type: prompt_ids and response_ids must be lists of token ids"):
            list(file_documents(jsonl(tmp_path / "b.jsonl", [bad]), tokenizer))


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_lanes_share_the_rows_out(tmp_path, lanes):
    folder = tmp_path / "set"
    folder.mkdir()
    texts = [{"text": f"row {i}"} for i in range(700)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts[:601]), folder / "a.parquet")
    jsonl(folder / "b.jsonl", texts[601:640])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts[640:]), folder / "c.parquet")
    everything = list(file_rows(folder))
    assert [parse_row(row) for _, row in everything] == texts
    for lane in range(lanes):
        assert list(file_rows(folder, lane=lane, lanes=lanes)) == everything[lane::lanes]


@pytest.mark.parametrize(("files", "lanes"), [(4, 2), (3, 2), (1, 3)])
def test_lanes_of_a_hub_set_from_a_local_stand_in(tmp_path, files, lanes, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "stand_in"
    folder.mkdir()
    for i in range(files):
        jsonl(folder / f"train-{i}.jsonl", [{"text": f"{i} {n}"} for n in range(7)])
    shares = [list(hub_rows(str(folder), lane=lane, lanes=lanes)) for lane in range(lanes)]
    origins = [origin for share in shares for origin, _ in share]
    assert len(set(origins)) == len(origins) and min(map(len, shares)) >= 7 * files // lanes
    assert sorted(row["text"] for share in shares for _, row in share) == sorted(
        row["text"] for _, row in hub_rows(str(folder))
    )
