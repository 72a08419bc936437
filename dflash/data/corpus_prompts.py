"""Prompts cut from the embedded corpus: the start of regeneration and of training without a data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dflash.data.corpus import SourceFile, exercises
from dflash.data.prompts import Prompt, encode_prompt
from dflash.data.stream import shuffled_index

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
