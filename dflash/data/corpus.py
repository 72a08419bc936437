"""The embedded corpus: source text of the running interpreter's standard library, real text on every machine.

Stands at the very start of both flows: the tiny target is trained on it, prompts are cut from it. Whole files are
held out, chosen by a hash of their path, so that the split is the same on every machine.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import textwrap
import tokenize
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    # other people's code; test data (absent on many machines); tables and generated text; near copies of other
    # modules, which would leak held-out files into training
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "lib2to3"}
)
HELD_OUT_ONE_IN = 16


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus: ``name`` is its path inside the library, ``held_out`` True for evaluation files."""

    name: str
    text: str
    held_out: bool


def is_held_out(name: str) -> bool:
    """True for one file in sixteen, by a hash of its path inside the library."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def read_corpus(root: str | Path | None = None) -> list[SourceFile]:
    """All usable source files below ``root`` (default: the standard library), ordered by name.

    Raises ValueError if ``root`` holds no Python source.
    """
    root = Path(root if root is not None else sysconfig.get_path("stdlib"))
    files = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts) or path.is_symlink():
            continue
        if path.name.startswith("_sysconfigdata"):  # build flags of one machine, not prose of the library
            continue
        try:
            with tokenize.open(path) as stream:
                text = stream.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text.strip():
            name = relative.as_posix()
            files.append(SourceFile(name, text, is_held_out(name)))
    if not files:
        raise ValueError(
            f"data.corpus_root={str(root)!r} holds no Python source; give a folder of .py files, or null for the "
            "running interpreter's standard library"
        )
    return files


@dataclass(frozen=True)
class Exercise:
    """A documented function as a chat turn: ``messages`` in the form chat templates take."""

    name: str
    messages: list[dict]


def exercises(file: SourceFile, *, max_lines: int = 40) -> list[Exercise]:
    """Chat-style documents from the documented functions of one file: the docstring asks, the source answers."""
    try:
        tree = ast.parse(file.text)
    except SyntaxError:
        return []
    lines = file.text.splitlines()
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        doc = ast.get_docstring(node)
        if not doc or not 3 <= node.end_lineno - node.lineno + 1 <= max_lines:
            continue
        source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        arguments = ast.unparse(node.args)
        question = f"Write the function {node.name}({arguments}).\n{doc.split(chr(10) + chr(10))[0]}"
        thinking = f"I write {node.name} with {len(node.args.args)} arguments."
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "thinking": thinking, "content": source},
        ]
        found.append(Exercise(f"{file.name}:{node.lineno}", messages))
    return found
