"""Chats as token ids with a mask of exactly what the target generates; stands between the sources and packing.

Works for any chat template, by prefix difference: what the target generates in turn i is what the rendering of the
first i + 1 messages adds to the rendering of the first i messages with the generation prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from dflash.data.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLOCK = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<form>.*?)(?P=quote)\s*\)""")


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    options: Mapping[str, Any] | None = None,
    origin: str = "",
    stop_token_ids: Collection[int] | None = None,
) -> Document:
    """The conversation up to its last assistant turn, supervised exactly where the target itself generates.

    In the last assistant turn that is everything after the generation prompt: channel and message markers, ``<|end|>``
    between channels, the next ``<|start|>assistant``, up to and including the stop token. An earlier turn counts only
    if the full rendering still shows it as it was generated, its stop token apart: harmony writes ``<|end|>`` where
    ``<|return|>`` was generated, which is then left out, and drops earlier analysis, which leaves the whole turn out.

    options go to the template (reasoning_effort, current_date as ``YYYY-MM-DD``, tools, ...). stop_token_ids end a
    turn (default: the tokenizer's eos); what a template writes behind one is not generated.

    Raises ValueError if no turn is the assistant's, if the template refuses the messages, or if it renders them
    before the last assistant turn in another way once that is there (earlier thinking apart).
    """
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError(f"{origin or 'chat'}: no assistant turn, so there is nothing the target would generate")
    stops = frozenset({tokenizer.eos_token_id} if stop_token_ids is None else stop_token_ids)
    last = turns[-1]
    prompt, response = _turn(tokenizer, messages[: last + 1], options, origin)
    ids = np.asarray(prompt + response, dtype=np.int32)
    supervised = np.zeros(len(ids), dtype=bool)
    supervised[len(prompt) : len(prompt) + _generated(response, stops)] = True
    for i in turns[:-1]:
        _mark_earlier_turn(supervised, ids, _earlier_turn(tokenizer, messages[: i + 1], options, origin), stops)
    return Document(ids, supervised, origin)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    options: Mapping[str, Any] | None = None,
    origin: str = "",
) -> list[int]:
    """Token ids of the conversation, ending in the generation prompt of the next assistant turn."""
    return _encode(tokenizer, _render(tokenizer, messages, options, origin, prompt=True))


def _turn(tokenizer, messages, options, origin) -> tuple[list[int], list[int]]:
    """(prompt ids, response ids) of the last message, an assistant's.

    The two are encoded apart, as in decoding, where the target continues the ids of the prompt. Where the message
    makes the template drop earlier thinking, the prompt still has it: the target saw it when it wrote the message.
    """
    prompt = _render(tokenizer, messages[:-1], options, origin, prompt=True)
    before, whole = prompt, _render(tokenizer, messages, options, origin, prompt=False)
    if not whole.startswith(before):  # gpt-oss's drops the thinking behind tool calls once a final answer follows
        unthinking = [{key: m[key] for key in m if key != "thinking"} for m in messages[:-1]]
        before = _render(tokenizer, unthinking, options, origin, prompt=True)
        whole = _render(tokenizer, [*unthinking, messages[-1]], options, origin, prompt=False)
    if not whole.startswith(before):
        raise ValueError(
            f"{origin or 'chat'}: the chat template renders the history differently before and after turn "
            f"{len(messages)}, so what the target generates there is not a part of the text; cut the conversation "
            "before that turn, or into one conversation per assistant turn"
        )
    return _encode(tokenizer, prompt), _encode(tokenizer, whole[len(before) :])


def _earlier_turn(tokenizer, messages, options, origin) -> tuple[list[int], list[int]]:
    """As ``_turn``; an empty response where the template breaks the prefix property, so that nothing is marked."""
    try:
        return _turn(tokenizer, messages, options, origin)
    except ValueError:
        return [], []


def _mark_earlier_turn(supervised, ids, turn: tuple[list[int], list[int]], stops: frozenset[int]) -> None:
    prompt, response = turn
    response = response[: _generated(response, stops)]
    start, end = len(prompt), len(prompt) + len(response)
    shown = ids[:end].tolist()
    if len(shown) < end or shown[:start] != prompt:
        return
    if response and response[-1] in stops and shown[-1] != response[-1]:  # the history closes turns in its own way
        end -= 1
        response = response[:-1]
    if shown[start:end] == response:
        supervised[start:end] = True


def _generated(response: Sequence[int], stops: frozenset[int]) -> int:
    """Number of leading ids that generation samples: up to and including the first stop token."""
    return next((n for n, token in enumerate(response, 1) if token in stops), len(response))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_options(options: Mapping[str, Any] | None) -> None:
    """Raises ValueError if current_date is there and is not ``YYYY-MM-DD``."""
    if options and "current_date" in options:
        _parse_date(options["current_date"])


def _parse_date(value: Any) -> date:
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"data.options.current_date={value!r} is not a date; write it as '2026-01-31'") from None


def _render(tokenizer, messages, options, origin, *, prompt: bool) -> str:
    options = dict(options or {})
    if "current_date" in options:
        day = _parse_date(options["current_date"])
        options["chat_template"] = _with_fixed_date(tokenizer.get_chat_template(), day)
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt, **options)
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(f"{origin or 'chat'}: the chat template refuses the messages: {error}") from error


def _with_fixed_date(template: str, day: date) -> str:
    """The template with its questions to the clock answered by ``day``.

    gpt-oss's asks for the date it is rendered on; a recorded run must not depend on the day it is repeated. Only
    text can replace the call: transformers lets no function of ours into a template.
    """
    return CLOCK.sub(lambda call: json.dumps(day.strftime(call["form"])), template)
