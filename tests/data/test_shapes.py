"""Foreign rows become messages, and what does not fit is a bad row."""

from __future__ import annotations

import pytest

from dflash.data.rows import BadRow
from dflash.data.shapes import HarmonyTurns, Instruction, Plain, ShareGPT
from dflash.data.sources import row_to_document


def test_instruction():
    row = {"instruction": "Sort.", "input": "3 1", "output": "1 3"}
    user, assistant = Instruction()(row)["messages"]
    assert user == {"role": "user", "content": "Sort.\n\n3 1"} and assistant == {"role": "assistant", "content": "1 3"}
    assert Instruction()({**row, "input": " "})["messages"][0]["content"] == "Sort."
    named = Instruction(question="prompt", answer="completion", context=None)
    assert len(named({"prompt": "Sort.", "completion": "1"})["messages"]) == 2
    assert len(named({"prompt": "Sort."})["messages"]) == 1  # to be answered
    with pytest.raises(BadRow, match="no text: no 'instruction' among"):
        Instruction()({"prompt": "x"})


def test_sharegpt():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    roles = [message["role"] for message in ShareGPT()({"conversations": turns})["messages"]]
    assert roles == ["system", "user", "assistant"]
    assert ShareGPT(column="c")({"c": [{"role": "user", "content": "a"}]}) == {
        "messages": [{"role": "user", "content": "a"}]
    }
    assert (
        ShareGPT()({"conversations": [{"from": "bing", "value": "x"}]})["messages"][0]["role"] == "bing"
    )  # refused later
    for entries, reason in (
        ("x", "must be a list"),
        (["x"], "must be an object"),
        ([{"value": "x"}], "has the role None"),
    ):
        with pytest.raises(BadRow, match=reason):
            ShareGPT()({"conversations": entries})


def test_harmony_turns(tokenizer):
    turns = [
        ("assistant_reasoning_effort", "High"),
        ("user", "two and two"),
        ("assistant", "<|channel|>analysis<|message|>I add<|end|>..."),
        ("assistant_analysis", "I add"),
        ("assistant_final", "four"),
    ]
    for names in (("role", "content"), ("from", "value")):
        row = HarmonyTurns()({"conversations": [dict(zip(names, turn, strict=True)) for turn in turns]})
        assert row["messages"] == [
            {"role": "user", "content": "two and two"},
            {"role": "assistant", "content": "four", "thinking": "I add"},
        ]
        options = {"reasoning_effort": "low", "current_date": "2025-06-28"}
        document = row_to_document(tokenizer, None, options)("here", row)
        text = tokenizer.decode(document.ids.tolist())
        assert "Reasoning: high" in text and "2025-06-28" in text  # the row's own effort, the data set's date
        sampled = tokenizer.decode(document.ids[document.supervised].tolist())
        assert sampled == (
            "<|channel|>analysis<|message|>I add<|end|><|start|>assistant<|channel|>final<|message|>four<|return|>"
        )
    with pytest.raises(BadRow, match="unknown role"):
        HarmonyTurns()({"conversations": [{"role": "assistant_commentary", "content": "x"}]})


def test_plain():
    row = {"text": "x"}
    assert Plain()(row) is row
