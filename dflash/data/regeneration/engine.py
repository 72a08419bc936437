"""The nouns of regeneration and the protocol of who answers: the target in this process, or a server elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

STOP, LENGTH = "stop", "length"

# (ids of prompts, their numbers) -> each one's place among them and the response to it, stop token included, as it is
# done. Anything random in it depends on a prompt's number only.
Generate = Callable[[list[list[int]], Sequence[int]], Iterable[tuple[int, Sequence[int]]]]


@dataclass(frozen=True)
class Question:
    """A prompt at its place. index: its number in the source, by which it is seeded. ids: what is continued."""

    index: int
    name: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """tokens: as sampled, the stop token included. finish: "stop", or "length" where the limit cut it.

    exact: False where the tokens were encoded again from a server's text, and so may differ from those sampled.
    """

    tokens: tuple[int, ...]
    finish: str
    exact: bool = True


@dataclass(frozen=True)
class Refusal:
    """There is no answer to learn from, and asking again would not help; counted by ``reason``."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Failure:
    """No answer this time: the prompt stays open for the next run."""

    reason: str
    detail: str = ""


Outcome = Answer | Refusal | Failure


class EngineError(ValueError):
    """No prompt can be answered: a wrong address, key or model, or a server that is gone."""


class Engine(Protocol):
    """Answers prompts; of the words of ``Question`` nothing but index and ids may decide an answer."""

    def identity(self) -> dict[str, Any]:
        """Plain values that decide the answers, such as the model; not where it runs, nor how fast."""
        ...

    def answers(self, questions: Iterator[Question]) -> Iterator[tuple[Question, Outcome]]:
        """Exactly one outcome to every question taken, in any order, and no more taken than are being worked on.

        Raises EngineError where going on is useless.
        """
        ...
