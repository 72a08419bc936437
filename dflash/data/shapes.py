"""Shapes of foreign rows: each turns the row of a data set into one of ours, {"messages": [...]}.

What conf ``data.shape`` names. A row that does not have the shape is a BadRow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from dflash.data.rows import TEMPLATE_OPTIONS, BadRow


class Shape(Protocol):
    """Called with a row as the data set has it, and not allowed to change it."""

    def __call__(self, row: dict) -> dict: ...


@dataclass(frozen=True)
class Plain:
    """Rows that are ours already."""

    def __call__(self, row: dict) -> dict:
        return row


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A question and its answer in columns of their own; ``context`` (may be empty or None) is put below the question.

    Rows without the answer are kept as a question alone.
    """

    question: str = "instruction"
    answer: str = "output"
    context: str | None = "input"

    def __call__(self, row: dict) -> dict:
        asked = _text(row, self.question)
        below = row.get(self.context) if self.context else None
        content = f"{asked}\n\n{below}" if below and str(below).strip() else asked
        messages = [{"role": "user", "content": content}]
        if row.get(self.answer):
            messages.append({"role": "assistant", "content": row[self.answer]})
        return {"messages": messages}


@dataclass(frozen=True, kw_only=True)
class ShareGPT:
    """``conversations`` of {"from", "value"} (or {"role", "content"}), under the names that were usual in 2023."""

    column: str = "conversations"
    roles: Mapping[str, str] = field(
        default_factory=lambda: {
            "human": "user", "user": "user", "system": "system",
            "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
        }
    )  # fmt: skip

    def __call__(self, row: dict) -> dict:
        return {
            "messages": [
                {"role": self.roles.get(role, role), "content": content} for role, content in _turns(row, self.column)
            ]
        }


@dataclass(frozen=True, kw_only=True)
class HarmonyTurns:
    """``conversations`` of gpt-oss as SpecForge writes them: one entry for each channel, and the reasoning effort.

    assistant_analysis is the thinking of the assistant_final behind it; assistant_reasoning_effort goes to the chat
    template for this row alone; an ``assistant`` entry holds the same once more as one string, and is passed over.
    A row with assistant_commentary (tool calls, which the entries do not show whole) is a BadRow.
    """

    column: str = "conversations"

    def __call__(self, row: dict) -> dict:
        messages: list[dict[str, Any]] = []
        options: dict[str, Any] = {}
        thinking = None
        for role, content in _turns(row, self.column):
            if role == "assistant_reasoning_effort":
                options["reasoning_effort"] = str(content).lower()
            elif role == "assistant_analysis":
                thinking = content
            elif role == "assistant_final":
                message = {"role": "assistant", "content": content}
                messages.append(message | ({"thinking": thinking} if thinking else {}))
                thinking = None
            elif role in ("user", "human", "system"):
                messages.append({"role": "system" if role == "system" else "user", "content": content})
            elif role != "assistant":
                raise BadRow("unknown role", f"{self.column} holds {role!r}")
        return {"messages": messages, TEMPLATE_OPTIONS: options}


def _text(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise BadRow("no text", f"no {key!r} among the fields {sorted(row)}")
    return row[key]


def _turns(row: Mapping[str, Any], column: str) -> Iterator[tuple[Any, Any]]:
    """(role, content) of each entry; contents are checked later, with those of all rows."""
    entries = _text(row, column)
    if not isinstance(entries, list):
        raise BadRow("wrong type", f"{column} must be a list, found {type(entries).__name__}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise BadRow("wrong type", f"{column}[{i}] must be an object, found {type(entry).__name__}")
        role, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
        if not isinstance(role, str):
            raise BadRow("unknown role", f"{column}[{i}] has the role {role!r}")
        yield role, content
