"""Prompts: token ids to continue, from files or the hub; the start of serving and of regeneration.

``corpus_prompts.py`` cuts some from the corpus, ``held_out.py`` the committed set that acceptance is measured on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dflash.data.chat import check_options, render_prompt
from dflash.data.rows import (
    BadLines,
    BadRow,
    checked_text,
    convert,
    file_rows,
    hub_rows,
    messages_of,
    row_options,
    text_of,
)

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
    to_prompt = row_to_prompt(tokenizer, max_tokens, options)
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
    to_prompt = row_to_prompt(tokenizer, max_tokens, options)
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


def row_to_prompt(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int | None, options: Mapping[str, Any] | None
) -> Callable[[str, dict], Prompt]:
    """(origin, row) -> its prompt, as ``read_prompts`` describes; BadRow where it holds none."""
    check_options(options)  # a wrong option is the user's mistake, not that of every row

    def to_prompt(origin: str, row: dict) -> Prompt:
        prompt = _parse_prompt(origin, row)
        try:
            prompt = encode_prompt(tokenizer, prompt, options=row_options(row, options))
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
