"""Cuts the committed prompt set from held-out files of the corpus; run once by ``python -m dflash.data prompts``."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

import numpy as np

from dflash.data.corpus import SourceFile, exercises
from dflash.data.corpus_prompts import interleave
from dflash.data.prompts import Prompt


def held_out_prompts(
    files: Sequence[SourceFile],
    *,
    num_completions: int = 48,
    num_chats: int = 16,
    characters: tuple[int, int] = (120, 400),
    seed: int = 0,
    without: Sequence[Prompt] = (),
) -> list[Prompt]:
    """Prompts as text, from held-out files only: code to continue, then questions for a documented function.

    A completion begins at a file's start or at a def or class, and ends inside a function, at the end of a header, a
    docstring or a statement that is not the last. The line break is left to the target: with it, the indentation
    that belongs to the same token would be cut off. One prompt from each file in turn; functions that a question
    asks for are in no completion. Nothing overlaps with the prompts of ``without``.

    Raises ValueError if the files do not hold so many.
    """
    files = [f for f in files if f.held_out]
    rng = np.random.default_rng(seed)
    files = [files[i] for i in rng.permutation(len(files))]
    low, high = characters

    def questions(file: SourceFile) -> list[Prompt]:
        found = [Prompt((), e.name, "chat", e.messages[0]["content"]) for e in exercises(file)]
        return [prompt for prompt in found if len(prompt.text) <= high and prompt.name not in covered]

    covered = {line for prompt in without if prompt.kind == "completion" for line in _lines_of(prompt)}
    chats = _round_robin(files, questions, num_chats, rng, [p for p in without if p.kind == "chat"])
    asked = {prompt.name for prompt in (*chats, *without) if prompt.kind == "chat"}

    def cuts(file: SourceFile) -> list[Prompt]:
        return [prompt for prompt in _cuts(file, low, high) if not asked & _lines_of(prompt)]

    others = [prompt for prompt in without if prompt.kind == "completion"]
    return interleave(_round_robin(files, cuts, num_completions, rng, others), chats)


def _round_robin(
    files: Sequence[SourceFile],
    choices_of: Callable[[SourceFile], list[Prompt]],
    wanted: int,
    rng: np.random.Generator,
    taken: Sequence[Prompt],
) -> list[Prompt]:
    """One prompt from each file in turn; none that overlaps with another or with those ``taken`` already."""
    queues = []
    for file in files:
        choices = choices_of(file)
        queues.append([choices[i] for i in rng.permutation(len(choices))])
    found: list[Prompt] = []
    while len(found) < wanted and any(queues):
        for queue in queues:
            while queue and len(found) < wanted:
                prompt = queue.pop()
                if not any(_overlap(prompt, other) for other in (*taken, *found)):
                    found.append(prompt)
                    break
    if len(found) < wanted:
        raise ValueError(f"prompts: the held-out files hold only {len(found)} prompts, {wanted} wanted; ask for fewer")
    return found


def _overlap(a: Prompt, b: Prompt) -> bool:
    return a.text in b.text or b.text in a.text or (a.kind == "completion" and bool(_lines_of(a) & _lines_of(b)))


def _lines_of(prompt: Prompt) -> set[str]:
    """``file:line`` of every line that a completion covers."""
    file, _, first = prompt.name.rpartition(":")
    return {f"{file}:{int(first) + i}" for i in range(prompt.text.count("\n") + 1)}


def _cuts(file: SourceFile, low: int, high: int) -> list[Prompt]:
    try:
        tree = ast.parse(file.text)
    except SyntaxError:
        return []
    lines = file.text.split("\n")  # as ast counts them; splitlines would also break at form feeds
    opening = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    starts = [1, *(node.lineno for node in ast.walk(tree) if isinstance(node, opening))]
    ends = sorted({end for node in ast.walk(tree) if isinstance(node, opening[:2]) for end in _ends(node)})
    found = []
    for start in starts:
        for end in ends:
            text = "\n".join(lines[start - 1 : end]).rstrip()
            if end >= start and low <= len(text) <= high:
                found.append(Prompt((), f"{file.name}:{start}", "completion", text))
    return found


def _ends(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[int]:
    """Last lines of the function's header and of each statement of its body that another one follows."""
    first = function.body[0]
    header = first.lineno - 1
    own_line = function.lineno <= header
    inner = [statement.end_lineno for statement in function.body[:-1]]
    return [header, *inner] if own_line else []
