"""The mask of a chat is exactly what generation would have sampled, under several templates."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest

from dflash.data.chat import render_chat, render_prompt
from dflash.target.reading import read_reading

CHATML = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
# The rules of gpt-oss's own template: it asks the clock, keeps analysis only in the last turn and before a tool call
# that no final answer follows, and names the tool in the assistant's header.
HARMONY = """\
<|start|>system<|message|>Current date: {{ strftime_now("%Y-%m-%d") }}
Reasoning: {{ reasoning_effort | default("medium") }}
<|end|>
{%- set calls = namespace(name=none) -%}
{%- for m in messages -%}
  {%- if m.role == "assistant" and "tool_calls" in m -%}
    {%- set answered = namespace(yes=false) -%}
    {%- for later in messages[loop.index:] if later.role == "assistant" and "tool_calls" not in later -%}
      {%- set answered.yes = true -%}
    {%- endfor -%}
    {%- if m.thinking and not answered.yes -%}
      <|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>
    {%- endif -%}
    {%- set calls.name = m.tool_calls[0].function.name -%}
    <|start|>assistant to=functions.{{ calls.name }}<|channel|>commentary json<|message|>
    {{- m.tool_calls[0].function.arguments | tojson }}<|call|>
  {%- elif m.role == "assistant" and loop.last and not add_generation_prompt -%}
    {%- if "thinking" in m -%}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{%- endif -%}
    <|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>
  {%- elif m.role == "assistant" -%}
    <|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>
  {%- elif m.role == "tool" -%}
    <|start|>functions.{{ calls.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>
  {%- else -%}
    <|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
WORDS = ["def f(x):\n", "    return x", "\n", " ", "12345", "naïve ☃", "<tag>", "self.x = y\n\n"]


def text(rng: random.Random) -> str:
    return "".join(rng.choices(WORDS, k=rng.randint(1, 6))) + "."


def encode(tokenizer, string: str) -> list[int]:
    return tokenizer(string, add_special_tokens=False)["input_ids"]


def chatml(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = CHATML
    return other, {tokenizer.convert_tokens_to_ids("<|end|>")}


@pytest.mark.parametrize("seed", range(12))
def test_last_turn_is_prompt_plus_generated(tokenizer, seed):
    rng = random.Random(seed)
    messages = []
    for _ in range(rng.randint(0, 2)):
        messages += [{"role": "user", "content": text(rng)}, {"role": "assistant", "content": text(rng)}]
    messages.append({"role": "user", "content": text(rng)})
    thinking, content = (text(rng) if seed % 2 else None), text(rng)
    answer = {"role": "assistant", "content": content, "thinking": thinking}
    # what the target would have sampled, written out by hand
    generated = f"<|channel|>analysis<|message|>{thinking}<|end|><|start|>assistant" if thinking else ""
    generated = encode(tokenizer, f"{generated}<|channel|>final<|message|>{content}<|return|>")

    options = {"reasoning_effort": "high"} if seed % 3 else None
    prompt = render_prompt(tokenizer, messages, options=options)
    document = render_chat(tokenizer, [*messages, answer], options=options, origin="a.jsonl:1")

    assert document.ids.tolist() == prompt + generated
    assert document.supervised[len(prompt) :].all()
    assert document.origin == "a.jsonl:1"
    assert tokenizer.decode(prompt).endswith("<|start|>assistant")


@pytest.mark.parametrize("seed", range(6))
def test_earlier_turns_are_supervised_without_their_closing_token(tokenizer, seed):
    rng = random.Random(seed)
    q1, a1, q2, a2 = (text(rng) for _ in range(4))
    messages = [
        {"role": "user", "content": q1},
        {"role": "assistant", "content": a1},
        {"role": "user", "content": q2},
        {"role": "assistant", "content": a2},
    ]
    pieces = [
        (f"<|start|>user<|message|>{q1}<|end|><|start|>assistant", False),
        (f"<|channel|>final<|message|>{a1}", True),
        ("<|end|>", False),  # <|return|> was generated here
        (f"<|start|>user<|message|>{q2}<|end|><|start|>assistant", False),
        (f"<|channel|>final<|message|>{a2}<|return|>", True),
    ]
    document = render_chat(tokenizer, messages)
    encoded = [(encode(tokenizer, piece), mask) for piece, mask in pieces]
    assert document.ids.tolist() == [i for ids, _ in encoded for i in ids]
    assert document.supervised.tolist() == [mask for ids, mask in encoded for _ in ids]


def test_earlier_turn_whose_analysis_was_dropped_is_unsupervised(tokenizer):
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "thinking": "hm", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "thinking": "hm", "content": "four"},
    ]
    document = render_chat(tokenizer, messages)
    prompt = render_prompt(tokenizer, messages[:3])
    assert "hm" not in tokenizer.decode(prompt)
    assert document.supervised.tolist() == [i >= len(prompt) for i in range(len(document))]


def test_tool_results_are_never_supervised(tokenizer):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": "add(2, 2)"},
        {"role": "tool", "content": "SECRET"},
        {"role": "assistant", "content": "four"},
    ]
    document = render_chat(tokenizer, messages)
    sampled = tokenizer.decode(document.ids[document.supervised].tolist())
    assert sampled == "<|channel|>final<|message|>add(2, 2)<|channel|>final<|message|>four<|return|>"


@pytest.mark.parametrize("seed", range(6))
def test_template_that_writes_behind_the_stop_token(tokenizer, seed):
    tokenizer, stops = chatml(tokenizer)
    rng = random.Random(seed)
    messages = [{"role": r, "content": "x" + text(rng)} for r in ("user", "assistant", "user", "assistant")]
    document = render_chat(tokenizer, messages, stop_token_ids=stops)
    for i in (1, 3):  # simulate generation: prompt ids + sampled ids, which end at the stop token
        prompt = render_prompt(tokenizer, messages[:i])
        sampled = encode(tokenizer, messages[i]["content"] + "<|end|>")
        here = slice(len(prompt), len(prompt) + len(sampled))
        assert document.ids[: len(prompt)].tolist() == prompt
        assert document.ids[here].tolist() == sampled
        assert document.supervised[here].all()
        assert not document.supervised[here.stop]  # the line break that the template adds
    assert document.supervised.sum() == sum(len(encode(tokenizer, messages[i]["content"])) + 1 for i in (1, 3))


def test_prompt_that_would_merge_with_the_response_is_kept_apart(tokenizer):
    """A line break at the prompt's end and blanks at the response's start are one token when encoded together."""
    tokenizer, stops = chatml(tokenizer)
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "    return x"}]
    whole = encode(tokenizer, tokenizer.apply_chat_template(messages, tokenize=False))
    prompt = render_prompt(tokenizer, messages[:1])
    assert whole[: len(prompt)] != prompt, "the case is gone; find another pair that merges"
    document = render_chat(tokenizer, messages, stop_token_ids=stops)
    assert document.ids[: len(prompt)].tolist() == prompt
    assert np.flatnonzero(document.supervised)[0] == len(prompt)
    # as history it is encoded whole, so it is not what was sampled, and only the new turn counts
    longer = [*messages, {"role": "user", "content": "on"}, {"role": "assistant", "content": "y"}]
    document = render_chat(tokenizer, longer, stop_token_ids=stops)
    assert tokenizer.decode(document.ids[document.supervised].tolist()) == "y<|end|>"


def test_what_follows_the_last_assistant_turn_is_left_out(tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "t"}]
    longer = [*messages, {"role": "user", "content": "c"}]
    assert render_chat(tokenizer, longer).ids.tolist() == render_chat(tokenizer, messages).ids.tolist()


def test_date_is_a_parameter_even_where_the_template_asks_the_clock(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "<|start|>system<|message|>{{ strftime_now('%Y-%m-%d') }}<|end|>" + CHATML
    messages = [{"role": "user", "content": "a"}]
    prompt = render_prompt(tokenizer, messages, options={"current_date": "2001-02-03"})
    assert "2001-02-03" in tokenizer.decode(prompt)
    with pytest.raises(ValueError, match=r"current_date='tomorrow'"):
        render_prompt(tokenizer, messages, options={"current_date": "tomorrow"})


@pytest.fixture(scope="module")
def gpt_oss(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = HARMONY
    return tokenizer


def test_gpt_oss_template(gpt_oss):
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "thinking": "hm", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "five"},
        {"role": "assistant", "thinking": "so", "content": "six"},
    ]
    options = {"reasoning_effort": "low", "current_date": "2001-02-03"}
    document = render_chat(gpt_oss, messages, options=options)
    prompt = render_prompt(gpt_oss, messages[:5], options=options)
    generated = "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>six<|return|>"
    assert document.ids.tolist() == prompt + encode(gpt_oss, generated)
    sampled = gpt_oss.decode(document.ids[document.supervised].tolist())
    assert sampled == "<|channel|>final<|message|>four" + generated  # the first turn has lost its analysis
    head = gpt_oss.decode(prompt)
    assert "Current date: 2001-02-03\n" in head
    assert "Reasoning: low\n" in head


def test_gpt_oss_tool_call(gpt_oss):
    call = {"function": {"name": "add", "arguments": {"a": 2}}}
    messages = [
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "thinking": "I add", "tool_calls": [call]},
        {"role": "tool", "content": "SECRET"},
        {"role": "assistant", "tool_calls": [call]},
    ]
    document = render_chat(gpt_oss, messages)
    sampled = gpt_oss.decode(document.ids[document.supervised].tolist())
    made = ' to=functions.add<|channel|>commentary json<|message|>{"a": 2}<|call|>'
    assert sampled == f"<|channel|>analysis<|message|>I add<|end|><|start|>assistant{made}{made}"
    # a final answer makes the template drop the analysis that the target saw when it wrote that answer
    answered = [*messages[:3], {"role": "assistant", "content": "four"}]
    document = render_chat(gpt_oss, answered)
    prompt = render_prompt(gpt_oss, messages[:3])
    assert "I add" in gpt_oss.decode(prompt) and "I add" not in gpt_oss.apply_chat_template(answered, tokenize=False)
    assert document.ids.tolist() == prompt + encode(gpt_oss, "<|channel|>final<|message|>four<|return|>")
    sampled = gpt_oss.decode(document.ids[document.supervised].tolist())
    analysis = "<|channel|>analysis<|message|>I add<|end|><|start|>assistant"
    assert sampled == f"{analysis}{made}<|channel|>final<|message|>four<|return|>"


# Told without a template: what gpt-oss's own shows of a conversation, and what of that the model sampled.
def transcript(messages: list[dict], options: dict) -> list[tuple[str, bool]]:
    """(text, whether it was sampled) of the prompt of the last turn and of that turn, under the rules of HARMONY."""
    last = len(messages) - 1
    finals = [i for i, m in enumerate(messages) if m["role"] == "assistant" and "tool_calls" not in m]
    dropped_at = {}  # thinking of call i is gone from every prompt behind this turn
    for i, message in enumerate(messages[:last]):
        if message["role"] == "assistant" and message.get("thinking"):
            later = [f for f in finals if f >= i] if "tool_calls" in message else [i]
            dropped_at[i] = later[0] if later else last
    gone = {i for i, at in dropped_at.items() if at < last}  # from the last prompt

    def as_it_was(turn: int) -> bool:
        """Whether turn's prompt and response stand in the last prompt as they were."""
        return turn not in gone and all(at < turn for i, at in dropped_at.items() if i < turn and i in gone)

    effort, date = options["reasoning_effort"], options["current_date"]
    pieces = [(f"<|start|>system<|message|>Current date: {date}\nReasoning: {effort}\n<|end|>", False)]
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            result = json.dumps(message["content"], ensure_ascii=False)
            head = "<|start|>functions.add to=assistant<|channel|>commentary<|message|>"
            pieces.append((f"{head}{result}<|end|>", False))
        elif message["role"] != "assistant":
            pieces.append((f"<|start|>{message['role']}<|message|>{message['content']}<|end|>", False))
        else:
            sampled = i == last or as_it_was(i)
            thinking = message.get("thinking") if i not in gone else None
            said = f"<|channel|>analysis<|message|>{thinking}<|end|><|start|>assistant" if thinking else ""
            if "tool_calls" in message:
                arguments = json.dumps(message["tool_calls"][0]["function"]["arguments"])
                said += f" to=functions.add<|channel|>commentary json<|message|>{arguments}<|call|>"
            else:
                said += f"<|channel|>final<|message|>{message['content']}"
            pieces += [("<|start|>assistant", False), (said, sampled)]
            if "tool_calls" not in message:
                pieces.append(("<|return|>", True) if i == last else ("<|end|>", False))
    return pieces


def conversation(rng: random.Random) -> list[dict]:
    """Some turns with and without thinking, tool calls and their results, ending with the assistant."""
    messages = [{"role": "system", "content": text(rng)}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": text(rng)})
        for _ in range(rng.choice((0, 0, 1, 2))):
            call = {"function": {"name": "add", "arguments": {"a": rng.randint(0, 99)}}}
            thinking = {"thinking": text(rng)} if rng.random() < 0.5 else {}
            messages += [
                {"role": "assistant", "tool_calls": [call], **thinking},
                {"role": "tool", "content": text(rng)},
            ]
        thinking = {"thinking": text(rng)} if rng.random() < 0.5 else {}
        messages.append({"role": "assistant", "content": text(rng), **thinking})
    if rng.random() < 0.2 and len(messages) > 3 and "tool_calls" in messages[-3]:
        messages = messages[:-2]  # ends with the call
    return messages


@pytest.fixture(scope="module")
def embedded():
    """The embedded target's own tokenizer, with the harmony special tokens, under the rules of gpt-oss."""
    tokenizer = read_reading(str(Path(__file__).parents[2] / "assets" / "tiny_gpt_oss")).tokenizer
    tokenizer.chat_template = HARMONY
    return tokenizer


@pytest.mark.parametrize("seed", range(40))
def test_mask_is_what_generation_sampled(embedded, seed):
    rng = random.Random(seed)
    messages = conversation(rng)
    options = {"reasoning_effort": rng.choice(("low", "medium", "high")), "current_date": f"2026-0{1 + seed % 9}-01"}
    pieces = transcript(messages, options)
    document = render_chat(embedded, messages, options=options)
    encoded = [(encode(embedded, piece), sampled) for piece, sampled in pieces]
    assert embedded.decode(document.ids.tolist()) == "".join(piece for piece, _ in pieces)
    assert document.ids.tolist() == [token for ids, _ in encoded for token in ids]
    assert document.supervised.tolist() == [sampled for ids, sampled in encoded for _ in ids]
    # and the last turn is the continuation of exactly the prompt that decoding would be given
    prompt = render_prompt(embedded, messages[:-1], options=options)
    assert document.ids[: len(prompt)].tolist() == prompt and document.supervised[len(prompt) :].all()


def test_refusals(tokenizer):
    with pytest.raises(ValueError, match=r"x.jsonl:7: no assistant turn"):
        render_chat(tokenizer, [{"role": "user", "content": "a"}], origin="x.jsonl:7")
    counting = copy.deepcopy(tokenizer)
    counting.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(ValueError, match="renders the history differently"):
        render_chat(counting, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="roles must alternate"):
        render_chat(strict, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
