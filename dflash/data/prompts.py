"""Prompts: token ids to continue, from the corpus, files or the hub; the start of serving and of regeneration.

``held_out.py`` cuts the committed set that acceptance is measured on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dflash.data.chat import check_options, render_prompt
from dflash.data.corpus import SourceFile, exercises
from dflash.data.rows import BadLines, BadRow, checked_text, convert, file_rows, hub_rows, messages_of, text_of
from dflash.data.stream import shuffled_index

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("completion", "chat")


@dataclass(frozen=True)
class Prompt:
    """One prompt. ids: what the target continues; empty until a tokenizer has read it.

    name: what reports call it. kind: "completion" (``text`` is continued) or "chat" (``text`` is the user's message,
    ``messages`` the whole conversation, where it is more than that message).
    """

    ids: tuple[int, ...]
    name: str
    kind: str
    text: str
    messages: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"prompt {self.name}: kind={self.kind!r} is none of {', '.join(KINDS)}")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, options: Mapping[str, Any] | None = None
) -> Prompt:
    """The prompt with its ids under ``tokenizer``; a chat goes through the chat template, with ``options``."""
    if prompt.kind == "chat":
        messages = prompt.messages or ({"role": "user", "content": prompt.text},)
        return replace(prompt, ids=tuple(render_prompt(tokenizer, messages, options=options, origin=prompt.name)))
    return replace(prompt, ids=tuple(tokenizer(prompt.text, add_special_tokens=False)["input_ids"]))


def corpus_prompts(
    files: Sequence[SourceFile],
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    held_out: bool,
    seed: int,
    prompt_tokens: tuple[int, int] = (32, 96),
    chat_fraction: float = 0.25,
    reference_tokens: int = 32,
    options: Mapping[str, Any] | None = None,
) -> list[Prompt]:
    """``count`` different prompts from the held-out or the other files of the corpus, the same for the same seed.

    A completion begins at a file's start or at the line of a def or class, has a random length within prompt_tokens
    (bounds included), and leaves at least ``reference_tokens`` of the file to be continued. Chats are the questions
    of ``corpus.exercises``, of at most twice the upper bound. Asking for more prompts keeps those before them.

    Raises ValueError if the files hold fewer different prompts than that.
    """
    _check_bounds(count, prompt_tokens, chat_fraction)
    files = [f for f in files if f.held_out == held_out]
    wanted_chats = int(count * chat_fraction)
    questions = [Prompt((), e.name, "chat", e.messages[0]["content"]) for f in files for e in exercises(f)]

    def chat(draw: int) -> Prompt | None:
        prompt = encode_prompt(tokenizer, questions[shuffled_index(seed, draw, len(questions))], options=options)
        return prompt if len(prompt.ids) <= 2 * prompt_tokens[1] else None

    starts = [(f, at) for f in files for at in _starts(f.text)]

    def completion(draw: int) -> Prompt | None:
        file, at = starts[shuffled_index(seed, draw, len(starts))]
        num_tokens = int(np.random.default_rng([seed, draw]).integers(prompt_tokens[0], prompt_tokens[1] + 1))
        return _completion(file, at, tokenizer, num_tokens, reference_tokens)

    chats = _distinct(chat, wanted_chats, len(questions), "chats (data.chat_fraction)")
    completions = _distinct(completion, count - wanted_chats, 8 * len(starts), "completions (data.count)")
    return interleave(completions, chats)


def read_prompts(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int | None = None,
    max_tokens: int | None = None,
    on_bad: str = "raise",
    bad_lines: BadLines | None = None,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Prompt]:
    """The first ``count`` prompts (default: all) of a JSONL or Parquet file, or a folder of them.

    Rows: ``{"prompt": str}`` or ``{"text": str}``, with "kind" (default "completion") and "name" (default
    ``file:line``); or ``{"messages": [...]}``, where a last turn of the assistant is left for the target to write.
    Raises ValueError naming file and line at a bad row, unless ``on_bad="skip"``, which counts it in ``bad_lines``.
    """
    to_prompt = _row_to_prompt(tokenizer, max_tokens, options)
    rows = convert(file_rows(path), to_prompt, on_bad=on_bad, bad_lines=bad_lines, columns=columns)
    return _some(rows, count, path)


def hub_prompts(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int | None = None,
    name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    data_files: Any = None,
    max_tokens: int | None = None,
    on_bad: str = "raise",
    bad_lines: BadLines | None = None,
    options: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Prompt]:
    """As ``read_prompts``, from any data set that ``datasets`` can stream."""
    to_prompt = _row_to_prompt(tokenizer, max_tokens, options)
    rows = hub_rows(path, name=name, split=split, revision=revision, data_files=data_files)
    return _some(convert(rows, to_prompt, on_bad=on_bad, bad_lines=bad_lines, columns=columns), count, path)


def write_prompts(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """The prompts as JSONL text, without ids, so that they outlive the tokenizer; ``read_prompts`` reads them."""
    lines = []
    for prompt in prompts:
        content = {"messages": list(prompt.messages)} if prompt.messages else {"prompt": prompt.text}
        lines.append(json.dumps({"name": prompt.name, "kind": prompt.kind, **content}, ensure_ascii=False) + "\n")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def read_texts(path: str | Path) -> list[Prompt]:
    """The prompts of a file as ``write_prompts`` wrote them, without ids: no tokenizer is needed."""
    return list(convert(file_rows(path), _parse_prompt, on_bad="raise"))


def _row_to_prompt(tokenizer, max_tokens: int | None, options: Mapping[str, Any] | None):
    check_options(options)  # a wrong option is the user's mistake, not that of every row

    def to_prompt(origin: str, row: dict) -> Prompt:
        prompt = _parse_prompt(origin, row)
        try:
            prompt = encode_prompt(tokenizer, prompt, options=options)
        except ValueError as error:
            raise BadRow("chat template", str(error)) from error
        if max_tokens is not None and len(prompt.ids) > max_tokens:
            raise BadRow("over-long", f"{len(prompt.ids)} tokens, the limit is max_tokens={max_tokens}")
        return prompt

    return to_prompt


def _parse_prompt(origin: str, row: dict) -> Prompt:
    name = checked_text(row.get("name", origin), "name")
    if "messages" in row:
        messages = messages_of(row)
        messages = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        if not messages:
            raise BadRow("no user turn", "an assistant turn alone leaves no prompt")
        return Prompt((), name, "chat", messages[-1]["content"], tuple(messages))
    key = "prompt" if "prompt" in row else "text"
    if key not in row:
        raise BadRow("no text", f"none of 'prompt', 'text', 'messages' among the fields {sorted(row)}")
    kind = row.get("kind", "completion")
    if kind not in KINDS:
        raise BadRow("unknown kind", f"kind={kind!r} is none of {', '.join(KINDS)}")
    return Prompt((), name, kind, text_of(row, key))


def _some(prompts: Iterable[Prompt], count: int | None, path: str | Path) -> list[Prompt]:
    found = list(islice(prompts, count))
    if not found or (count is not None and len(found) < count):
        raise ValueError(f"prompts: {str(path)!r} holds {len(found)} usable prompts, {count or 'at least 1'} wanted")
    return found


def _check_bounds(count: int, prompt_tokens: tuple[int, int], chat_fraction: float) -> None:
    low, high = prompt_tokens
    if count < 1:
        raise ValueError(f"prompts: count={count} must be at least 1")
    if not 1 <= low <= high:
        raise ValueError(f"prompts: prompt_tokens={prompt_tokens} must be two numbers, 1 <= low <= high")
    if not 0 <= chat_fraction <= 1:
        raise ValueError(f"prompts: chat_fraction={chat_fraction} must lie in 0..1")


def _starts(text: str) -> list[int]:
    """Offsets of the file's start and of every line that opens a function or class."""
    starts, at = [0], 0
    for line in text.split("\n"):
        if at and line.lstrip().startswith(("def ", "class ", "async def ")):
            starts.append(at)
        at += len(line) + 1
    return starts


def _completion(file: SourceFile, at: int, tokenizer, num_tokens: int, reference_tokens: int) -> Prompt | None:
    """The first ``num_tokens`` tokens from offset ``at``; None if fewer than ``reference_tokens`` follow."""
    needed = num_tokens + reference_tokens
    for num_characters in (6 * needed, len(file.text)):  # nearly always enough, and always
        ids = tokenizer(file.text[at : at + num_characters], add_special_tokens=False)["input_ids"]
        if len(ids) > needed:  # one more, as the cut may go through the last
            break
    if len(ids) < needed:
        return None
    ids = ids[:num_tokens]
    line = file.text.count("\n", 0, at) + 1
    return Prompt(tuple(ids), f"{file.name}:{line}+{num_tokens}", "completion", tokenizer.decode(ids))


def _distinct(draw: Callable[[int], Prompt | None], wanted: int, most_draws: int, what: str) -> list[Prompt]:
    found: dict[tuple[int, ...], Prompt] = {}
    for i in range(most_draws):
        if len(found) == wanted:
            break
        prompt = draw(i)
        if prompt is not None:
            found.setdefault(prompt.ids, prompt)
    if len(found) < wanted:
        raise ValueError(f"prompts: the files hold only {len(found)} different {what}, {wanted} wanted; ask for fewer")
    return list(found.values())


def interleave(completions: list[Prompt], chats: list[Prompt]) -> list[Prompt]:
    """Chats spread evenly among the completions, so that any stretch of the list is a fair sample."""
    places = [((i + 0.5) / len(group), p) for group in (completions, chats) for i, p in enumerate(group)]
    return [prompt for _, prompt in sorted(places, key=lambda place: place[0])]
