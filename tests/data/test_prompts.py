"""Prompts are deterministic, different, from the right files, and survive being written as text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dflash.data.__main__ import main
from dflash.data.chat import render_prompt
from dflash.data.corpus import SourceFile, exercises, is_held_out
from dflash.data.corpus_prompts import corpus_prompts
from dflash.data.held_out import held_out_prompts
from dflash.data.prompts import Prompt, encode_prompt, hub_prompts, read_prompts, write_prompts
from dflash.data.rows import BadLines

COMMITTED = Path(__file__).parents[2] / "assets" / "prompts" / "held_out.jsonl"
VALIDATION = COMMITTED.with_name("validation.jsonl")
ASK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say x"}]


@pytest.fixture(scope="module")
def files() -> list[SourceFile]:
    """A corpus of our own, so that the test does not depend on the interpreter's version."""
    doc = '    """Add {n} to x, which is documented\n\n    at length.\n    """\n'
    body = doc + "    y = x + {n}\n    z = y * y\n    return z\n"
    functions = ["".join(f"def add_{f}_{n}(x):\n{body.format(n=n)}\n\n" for n in range(12)) for f in range(8)]
    return [SourceFile(f"f{f}.py", text, held_out=f >= 5) for f, text in enumerate(functions)]


def corpus(files, tokenizer, **changes):
    options = {"count": 24, "held_out": False, "seed": 3, "prompt_tokens": (16, 40)}
    return corpus_prompts(files, tokenizer, **{**options, **changes})


@pytest.mark.parametrize("held_out", [False, True])
def test_corpus_prompts_come_from_the_right_files(files, tokenizer, held_out):
    texts = {f.name: f.text for f in files if f.held_out == held_out}
    prompts = corpus(files, tokenizer, held_out=held_out)
    assert Counter(p.kind for p in prompts) == {"completion": 18, "chat": 6}
    assert len({p.ids for p in prompts}) == len({p.name for p in prompts}) == 24
    questions = {e.name: e.messages[:1] for f in files for e in exercises(f)}
    for prompt in prompts:
        file, _, line = prompt.name.partition(":")
        if prompt.kind == "chat":
            assert file in texts
            assert list(prompt.ids) == render_prompt(tokenizer, questions[prompt.name])
        else:
            start = int(line.split("+")[0]) - 1
            rest = "\n".join(texts[file].split("\n")[start:])
            assert rest.startswith(prompt.text)
            assert rest.startswith("def ")
            assert 16 <= len(prompt.ids) <= 40
            left = tokenizer(rest, add_special_tokens=False)["input_ids"][len(prompt.ids) :]
            assert len(left) >= 32


def test_corpus_prompts_depend_on_the_seed_alone(files, tokenizer):
    assert corpus(files, tokenizer) == corpus(files, tokenizer)
    assert {p.ids for p in corpus(files, tokenizer)} != {p.ids for p in corpus(files, tokenizer, seed=4)}
    assert {p.ids for p in corpus(files, tokenizer)} < {p.ids for p in corpus(files, tokenizer, count=48)}


def test_corpus_prompts_refuse_what_cannot_be(files, tokenizer):
    with pytest.raises(ValueError, match=r"hold only 60 different chats .*, 1000 wanted"):
        corpus(files, tokenizer, count=1000, chat_fraction=1.0)
    with pytest.raises(ValueError, match=r"prompt_tokens=\(9, 8\)"):
        corpus(files, tokenizer, prompt_tokens=(9, 8))
    with pytest.raises(ValueError, match=r"chat_fraction=2 must lie in 0..1"):
        corpus(files, tokenizer, chat_fraction=2)


def test_read_prompts(tmp_path, tokenizer):
    path = tmp_path / "p.jsonl"
    rows = [
        {"prompt": "def f("},
        {"text": "say x", "kind": "chat", "name": "mine"},
        {"messages": ASK},
        {"messages": [*ASK, {"role": "assistant", "content": "x"}]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    completion, chat, messages, answered = read_prompts(path, tokenizer)
    assert list(completion.ids) == tokenizer("def f(", add_special_tokens=False)["input_ids"]
    assert (completion.name, completion.kind, chat.name, chat.kind) == (f"{path}:1", "completion", "mine", "chat")
    assert list(chat.ids) == render_prompt(tokenizer, ASK[1:])
    assert list(messages.ids) == list(answered.ids) == render_prompt(tokenizer, ASK)
    assert read_prompts(path, tokenizer, count=2) == [completion, chat]
    with pytest.raises(ValueError, match="holds 4 usable prompts, 5 wanted"):
        read_prompts(path, tokenizer, count=5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": 1}', "wrong type"),
        ('{"prompt": ""}', "empty text"),
        ('{"prompt": "x", "kind": "poem"}', "unknown kind"),
        ('{"prompt": "x", "name": 1}', "wrong type"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "no user turn"),
        ('{"answer": "x"}', "no text"),
        ('{"prompt": "a b c d e f g h i j k"}', "over-long"),
    ],
)
def test_bad_prompts_are_named_or_counted(tmp_path, tokenizer, row, message):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "ok"}\n' + row + "\n")
    with pytest.raises(ValueError, match=f"p.jsonl:2: {message}"):
        read_prompts(path, tokenizer, max_tokens=8)
    bad_lines = BadLines()
    assert len(read_prompts(path, tokenizer, max_tokens=8, on_bad="skip", bad_lines=bad_lines)) == 1
    assert bad_lines.counts == {message: 1}


def test_written_prompts_are_read_back(tmp_path, tokenizer, files):
    bare = [
        Prompt((), "a", "completion", "def naïve():"),
        Prompt((), "b", "chat", "say x"),
        Prompt((), "c", "chat", "say x", tuple(ASK)),
    ]
    prompts = [encode_prompt(tokenizer, p) for p in bare]
    write_prompts(tmp_path / "new" / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "new" / "p.jsonl", tokenizer) == prompts
    assert prompts[1].ids != prompts[2].ids


def test_hub_prompts_from_a_local_stand_in(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    assert [p.text for p in hub_prompts(str(tmp_path), tokenizer, count=2)] == ["a", "b"]


def test_command_writes_the_held_out_set(tmp_path, files):
    root = tmp_path / "lib"
    root.mkdir()
    names = [f"m{i}.py" for i in range(200)]
    for name in names:
        (root / name).write_text(files[0].text)
        if is_held_out(name):
            (root / name).write_text(files[0].text.replace("add", name[:-3] + "_sum"))
    out = tmp_path / "p.jsonl"
    arguments = ["prompts", "--corpus", str(root), "--out", str(out), "--completions", "20", "--chats", "10"]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    held_out = {name for name in names if is_held_out(name)}
    used = Counter(row["name"].split(":")[0] for row in rows)
    assert set(used) == held_out  # spread over all files, and no others
    assert max(used.values()) - min(used.values()) <= 2
    first = out.read_bytes()
    main(arguments)
    assert out.read_bytes() == first


def test_held_out_prompts_end_where_continuing_makes_sense(files):
    prompts = held_out_prompts(files, num_completions=12, num_chats=6)
    for prompt in (p for p in prompts if p.kind == "completion"):
        assert 120 <= len(prompt.text) <= 400
        assert prompt.text.split("\n")[-1].strip().startswith(("def ", '"""', "y =", "z ="))
    with pytest.raises(ValueError, match="hold only"):
        held_out_prompts(files, num_completions=1000)


def test_sets_cut_without_another_one_do_not_overlap_with_it(files):
    wanted = {"num_completions": 4, "num_chats": 3}
    first = held_out_prompts(files, **wanted)
    second = held_out_prompts(files, **wanted, without=first)  # the same seed: it would else be the same set
    assert len(second) == 7
    assert_disjoint(first, second)


def assert_disjoint(first, second):
    for a in first:
        for b in second:
            assert a.text not in b.text and b.text not in a.text and a.name != b.name


def test_committed_sets_are_disjoint(tokenizer):
    tested, validation = read_prompts(COMMITTED, tokenizer), read_prompts(VALIDATION, tokenizer)
    assert Counter(p.kind for p in validation) == {"completion": 24, "chat": 8}
    assert all(is_held_out(p.name.split(":")[0]) for p in validation)
    assert_disjoint(tested, validation)


def test_committed_set(tokenizer):
    prompts = read_prompts(COMMITTED, tokenizer)
    assert Counter(p.kind for p in prompts) == {"completion": 48, "chat": 16}
    assert Counter(p.kind for p in prompts[:16])["chat"] == 4  # any stretch is a fair sample
    assert len({p.text for p in prompts}) == len({p.name for p in prompts}) == 64
    names = Counter(p.name.split(":")[0] for p in prompts)
    assert all(is_held_out(name) for name in names)
    assert len(names) >= 20
    assert all(120 <= len(p.text) <= 400 for p in prompts if p.kind == "completion")
    assert all(p.text == p.text.rstrip() for p in prompts if p.kind == "completion")
