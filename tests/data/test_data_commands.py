"""python -m dflash.data: regenerate with both engines into a set that training reads, and show."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow.parquet
import pytest
from flaky_server import answer_to, serve
from rich.console import Console
from toys import tiny_draft

from dflash.assemble.data import FileData, MixtureData
from dflash.assemble.showing import SUPERVISED, coloured, show
from dflash.data.__main__ import main
from dflash.data.mixture import FileSource
from dflash.data.sources import file_documents
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.sampling import Sampling
from dflash.hub.bundle import Bundle, TargetFacts
from dflash.hub.convert import write_folder
from dflash.hub.folder import format_named
from dflash.target.load import random_target
from dflash.target.reading import Reading, read_reading

TARGET = ["target=random_gpt_oss", "target.vocab_size=320"]
COUNT = 9


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def loaded():
    return random_target(family="gpt_oss", vocab_size=320)()


@pytest.fixture
def chats(tmp_path) -> Path:
    """Nine conversations, the fifth like the fourth, and a bad row."""
    path = tmp_path / "chats.jsonl"
    questions = [f"question {i - (i == 4)}" for i in range(COUNT)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "old"}]} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"messages": []}\n')
    return path


def arguments(chats: Path, out: Path, *more: str) -> list[str]:
    data = ["data=file", f"data.path={chats}", "data.on_bad=skip"]
    return ["regenerate", *TARGET, *data, f"out={out}", "max_new_tokens=6", "shard_size=4", *more]


def documents(loaded, out: Path) -> list:
    recipe = FileData(path=str(out), length=99, batch_size=1)
    recipe.peek()  # as training does before it loads the target
    return list(recipe.open(loaded, lambda *_: None)())


def plain(found: list) -> list:
    return [(d.ids.tolist(), d.supervised.tolist()) for d in found]


def test_local_responses_are_the_targets_own(tmp_path, chats, loaded, capsys):
    out = tmp_path / "set"
    sampled = ("temperature=1.0", "engine.batch_size=3")
    assert main(arguments(chats, out, *sampled)) == 0
    said = capsys.readouterr().out
    assert "duplicates of earlier prompts" in said and "bad row: empty text" in said and f"data.path={out}" in said
    found = documents(loaded, out)
    assert len(found) == COUNT - 1
    decoder = AutoregressiveDecoder(loaded.target, sampling=Sampling(temperature=1.0, seed=0))
    numbers = [i for i in range(COUNT) if i != 4]
    for number, document in zip(numbers, found, strict=True):
        prompt = document.ids[~document.supervised].tolist()
        limits = {"max_new_tokens": 6, "stop_token_ids": loaded.stop_token_ids}
        (trace,), _ = decoder.generate([prompt], first_index=number, **limits)
        assert document.ids[document.supervised].tolist() == list(trace.tokens)
    assert main(arguments(chats, out, *sampled)) == 0  # asks nothing
    mixed = MixtureData(sources={"own": FileSource(path=str(out))}, seed=0, length=99, batch_size=1)
    again = list(islice(mixed.open(loaded, lambda *_: None)(), COUNT - 1))
    assert plain(again) == plain(found) and not mixed.bad_lines.total
    with pytest.raises(ValueError, match="token ids of another tokenizer"):
        documents(random_target(family="gpt_oss", vocab_size=300)(), out)
    (out / "report.json").unlink()
    with pytest.raises(ValueError, match=r"has not come to its end; .*data.path=.*responses"):
        documents(loaded, out)
    assert main(arguments(chats, out, "temperature=0.5")) == 1
    assert "was begun with temperature 1.0 (now 0.5)" in capsys.readouterr().err


def test_a_draft_changes_no_response(tmp_path, chats, loaded):
    draft = tiny_draft(loaded.target, block_size=4, taps=(0, 1))
    shape = replace(draft.shape, mask_token_id=loaded.mask_token_id)
    folder = tmp_path / "draft"
    bundle = Bundle(shape, TargetFacts(vocab_size=320), draft.state_dict())
    write_folder(folder, format_named("zlab"), bundle, card="# card\n")
    assert main(arguments(chats, tmp_path / "loop")) == 0
    assert main(arguments(chats, tmp_path / "drafted", f"engine.draft={folder}")) == 0
    assert plain(documents(loaded, tmp_path / "drafted")) == plain(documents(loaded, tmp_path / "loop"))


def test_server_responses_are_trained_on(tmp_path, chats, loaded):
    out = tmp_path / "set"
    with serve(delay=0.01) as server:
        more = ("engine=server", f"engine.url={server.url}", "engine.model=m", "engine.backoff.first_seconds=0.01")
        assert main(arguments(chats, out, *more)) == 0
    rows = [row for file in sorted(out.glob("responses/*")) for row in pyarrow.parquet.read_table(file).to_pylist()]
    # all prompts begin with the same token, so the server gives them the same answer
    ids, _ = answer_to(rows[0]["prompt_ids"])
    found = documents(loaded, out)
    assert len(found) == COUNT - 1
    assert all(document.ids[document.supervised].tolist()[: len(ids)] == ids for document in found)


def test_wrong_settings_are_told_in_a_message(tmp_path, chats, capsys):
    assert main(arguments(chats, tmp_path / "a", "max_new_tokns=3")) == 1
    assert "did you mean max_new_tokens?" in capsys.readouterr().err
    assert main(["regenerate", *TARGET, "data=corpus", f"out={tmp_path / 'b'}"]) == 1
    assert "CorpusData holds no prompts to answer" in capsys.readouterr().err
    assert main(arguments(chats, tmp_path / "c", "engine=server", "engine.url=localhost", "engine.model=m")) == 1
    assert "engine.url=localhost: must begin with http" in capsys.readouterr().err
    assert main(arguments(chats, tmp_path / "c", "engine=server", "engine.url=http://localhost")) == 1
    assert "engine.model=null: this target has no name" in capsys.readouterr().err
    assert main(["show", *TARGET, "data=file", f"data.path={chats}", "--documents", "0"]) == 1
    assert "--documents=0: must be at least 1" in capsys.readouterr().err


def test_show_colours_what_is_supervised(chats, loaded):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=200, highlight=False)
    show([*TARGET, "data=file", f"data.path={chats}"], console, documents=2, skip=1, tokens=512)
    said = out.getvalue()
    assert "question 1" in said and "question 2" in said and "question 0" not in said
    assert "\x1b[1;32m<|channel|>final<|message|>old<|return|>\x1b[0m" in said
    assert "2 documents" in said


def test_coloured_text_is_the_documents(chats, loaded):
    tokenizer = loaded.tokenizer
    for document in file_documents(chats, tokenizer, on_bad="skip"):
        text = coloured(tokenizer, document, most=10_000)
        assert text.plain == tokenizer.decode(document.ids.tolist())
        shown = "".join(text.plain[span.start : span.end] for span in text.spans if span.style == SUPERVISED)
        assert shown == tokenizer.decode(document.ids[document.supervised].tolist())
    short = coloured(tokenizer, document, most=3).plain
    assert short == f"{tokenizer.decode(document.ids[:3].tolist())} [... {len(document) - 3} more tokens]"


def test_the_reading_of_a_folder_is_that_of_the_loaded_target(tmp_path, loaded):
    loaded.target.model.generation_config.eos_token_id = [loaded.tokenizer.eos_token_id]
    loaded.target.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    reading = read_reading(str(tmp_path))
    assert isinstance(reading, Reading) and reading.stop_token_ids == loaded.stop_token_ids
    assert reading.tokenizer_fingerprint() == loaded.tokenizer_fingerprint()
    with pytest.raises(ValueError, match="its tokenizer cannot be loaded"):
        read_reading(str(tmp_path / "nowhere"))
