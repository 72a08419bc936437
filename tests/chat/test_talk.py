"""python -m dflash.chat without a keyboard: text, colours, statistics and mistakes."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from dflash.chat.__main__ import ask, main
from dflash.chat.show import Tally, pieces, show
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import StreamedToken
from dflash.draft.draft import Draft
from dflash.draft.layout import full_layout
from dflash.draft.shape import shape_draft
from dflash.draft.taps import explicit_taps
from dflash.target.load import random_target
from dflash.training.checkpoint import CONTRACT_KEY, DRAFT_PREFIX, make_contract

SETTINGS = ("target=random_qwen3", "decoding.max_new_tokens=12")


@pytest.fixture(scope="module")
def loaded():
    return random_target(family="qwen3")()


@pytest.fixture(scope="module")
def checkpoint(loaded, tmp_path_factory) -> str:
    """A checkpoint of an untrained draft, as train.py writes it."""
    shape = shape_draft(
        loaded.target.dims,
        depth=1,
        block_size=4,
        taps=explicit_taps(layers=(1,)),
        layout=full_layout(),
        mask_token_id=loaded.mask_token_id,
    )
    torch.manual_seed(0)
    weights = {f"{DRAFT_PREFIX}{key}": value for key, value in Draft(shape).state_dict().items()}
    path = tmp_path_factory.mktemp("run") / "some.ckpt"
    torch.save({CONTRACT_KEY: make_contract(loaded, shape), "state_dict": weights, "global_step": 1}, path)
    return f"checkpoint={path}"


def streamed(*tokens: tuple[int, int, bool]) -> list[StreamedToken]:
    return [StreamedToken(*token) for token in tokens]


@pytest.mark.parametrize("verify", ["chain", "ddtree", "adaptive"])
def test_a_prompt_is_continued_as_the_target_would(capsys, checkpoint, loaded, verify):
    text = "def f(x):\n    return"
    assert main([checkpoint, *SETTINGS, f"verify={verify}", "--raw", "--prompt", text]) == 0
    said = capsys.readouterr().out
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    [trace], _ = AutoregressiveDecoder(loaded.target).generate(
        [ids], max_new_tokens=12, stop_token_ids=loaded.stop_token_ids
    )
    own = loaded.tokenizer.decode(trace.tokens, skip_special_tokens=True)
    assert said.startswith(own)
    assert f"\n{len(trace.tokens)} tokens, " in said
    assert "tokens a second" in said


def test_turns_go_through_the_chat_template(capsys, checkpoint):
    assert main([checkpoint, *SETTINGS, "--prompt", "hello", "--prompt", "again"]) == 0
    assert "24 tokens, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["checkpoint=nowhere"], "checkpoint=nowhere: does not exist"),
        (["blocksize=3"], "did you mean block_size?"),
        (["decoding.max_new_tokens=4000"], "decoding.max_new_tokens=4000: must be at most 2048"),
        (["verify=forest"], "verify=forest: choose one of"),
    ],
)
def test_mistakes_are_told_in_a_sentence(capsys, checkpoint, arguments, words):
    assert main([checkpoint, "target=random_qwen3", *arguments, "--prompt", "x"]) == 1
    told = capsys.readouterr()
    assert words in told.err
    assert len(told.err.splitlines()) == 2
    assert told.out == ""


def test_the_drafts_tokens_are_coloured(loaded):
    a, b, c = (loaded.tokenizer(text)["input_ids"][0] for text in "abc")
    out = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    parts = list(pieces(loaded.tokenizer, streamed((a, 0, False), (b, 1, True), (c, 1, False))))
    assert parts == [("a", False), ("b", True), ("c", False)]
    assert show(out, parts) == "abc"
    assert out.file.getvalue() == "a\x1b[32mb\x1b[0mc\n"


def test_characters_of_several_tokens_come_whole(loaded):
    ids = loaded.tokenizer("é€x")["input_ids"]
    assert len(ids) > 3
    parts = list(pieces(loaded.tokenizer, streamed(*((token, 1, False) for token in ids))))
    assert [text for text, _ in parts] == ["é", "€", "x"]
    cut = list(pieces(loaded.tokenizer, streamed((ids[0], 1, False))))
    assert [text for text, _ in cut] == ["\ufffd"]  # the answer ended inside a character


def test_the_tally_counts_rounds_and_drafted_tokens():
    tally = Tally()
    for _ in range(2):
        list(tally.watch(streamed((1, 0, False), (2, 1, True), (3, 1, True), (4, 1, False), (5, 2, False))))
    assert (tally.num_tokens, tally.num_drafted, tally.num_rounds, tally.round_tokens) == (10, 4, 4, 8)
    assert tally.sentence().startswith("10 tokens, 4 of them (40 %) from the draft; 2.00 a round over 4 rounds; ")
    assert Tally().sentence() == "no tokens"


def test_typing_ends_with_the_input(monkeypatch):
    lines = iter(["first", "  ", "second"])

    def read(*_, **__):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(Console, "input", read)
    assert list(ask(Console(file=io.StringIO()))) == ["first", "second"]
