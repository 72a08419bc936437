"""``python -m dflash.data show``: documents as training sees them, what is supervised in colour."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dflash.assemble.data import DataRecipe
from dflash.assemble.parts import build_parts, reading_of, ready_device
from dflash.assemble.run import bar
from dflash.compose import read_settings
from dflash.data.documents import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUPERVISED, PROMPT = "bold green", "dim"


def show(overrides: Sequence[str], console: Console, *, documents: int, skip: int, tokens: int) -> None:
    """Print ``documents`` documents of train.py's data option behind the first ``skip``, ``tokens`` tokens of each.

    The target's weights are loaded only where the documents are its own work. Raises ValueError for whatever is wrong
    with the settings.
    """
    for name, value, least in (("documents", documents, 1), ("skip", skip, 0), ("tokens", tokens, 1)):
        if value < least:
            raise ValueError(f"--{name}={value}: must be at least {least}")
    settings = read_settings("train", overrides)
    parts = build_parts(settings, {"target": None, "data": DataRecipe})
    recipe: DataRecipe = parts["data"]
    if recipe.needs_weights:
        ready_device(settings["device"])
        with bar(console, "responses of the target", unit="prompts") as advance:
            reading = parts["target"]()
            opened = recipe.open(reading, advance)
    else:
        reading = reading_of(settings["target"], parts["target"])
        opened = recipe.open(reading, lambda done, total: None)
    shown = 0
    for document in islice(opened(), skip, skip + documents):
        shown += 1
        console.rule(heading(document), align="left")
        console.print(coloured(reading.tokenizer, document, most=tokens), soft_wrap=True)
    console.rule()
    bad = ", ".join(f"{count} {reason}" for reason, count in sorted(recipe.bad_lines.counts.items()))
    console.print(f"{shown} documents; [{SUPERVISED}]supervised[/], [{PROMPT}]the rest[/]")
    if bad:
        console.print(f"bad rows left out on the way: {bad}; first: {recipe.bad_lines.examples[0]}", soft_wrap=True)


def heading(document: Document) -> str:
    """Where it came from, and how much of it is supervised."""
    supervised = int(document.supervised.sum())
    share = 100 * supervised / max(1, len(document))
    return f"{document.origin}: {len(document)} tokens, {supervised} supervised ({share:.0f} %)"


def coloured(tokenizer: PreTrainedTokenizerBase, document: Document, *, most: int) -> Text:
    """The first ``most`` tokens as text, special tokens included, each in the style of whether it is supervised."""
    text = Text()
    for ids, supervised in runs(document, most=most):
        piece = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text.append(piece, SUPERVISED if supervised else PROMPT)
    if len(document) > most:
        text.append(f" [... {len(document) - most} more tokens]")
    return text


def runs(document: Document, *, most: int) -> list[tuple[list[int], bool]]:
    """(ids, whether supervised) of each stretch that is the one or the other."""
    found: list[tuple[list[int], bool]] = []
    for token, supervised in zip(document.ids[:most].tolist(), document.supervised[:most].tolist(), strict=True):
        if not found or found[-1][1] != supervised:
            found.append(([], supervised))
        found[-1][0].append(token)
    return found
