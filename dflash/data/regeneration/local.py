"""The target in this process as an engine. The decoder is handed in: data knows nothing of decoding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from dflash.data.regeneration.engine import LENGTH, STOP, Answer, Generate, Outcome, Question

BATCHES_A_CALL = 8  # a place in the batch is only empty at the end of a call


class LocalEngine:
    """``generate`` is handed some batches at a time, of ``batch_size`` prompts, fewer where numbers are missing between
    (answered before, or duplicates). Raises ValueError for a batch size below 1.
    """

    def __init__(
        self, generate: Generate, *, identity: Mapping[str, Any], batch_size: int, stop_token_ids: Collection[int]
    ):
        if batch_size < 1:
            raise ValueError(f"engine.batch_size={batch_size}: must be at least 1")
        self.generate = generate
        self.batch_size = batch_size
        self.stops = frozenset(stop_token_ids)
        self._identity = dict(identity)

    def identity(self) -> dict[str, Any]:
        return self._identity

    def answers(self, questions: Iterator[Question]) -> Iterator[tuple[Question, Outcome]]:
        while taken := list(islice(questions, BATCHES_A_CALL * self.batch_size)):
            for run in consecutive(taken):
                for place, response in self.generate([list(question.ids) for question in run], run[0].index):
                    tokens = tuple(int(token) for token in response)
                    yield run[place], Answer(tokens, STOP if tokens and tokens[-1] in self.stops else LENGTH)


def consecutive(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """The questions in runs without a hole in their numbers."""
    run: list[Question] = []
    for question in questions:
        if run and question.index != run[-1].index + 1:
            yield run
            run = []
        run.append(question)
    if run:
        yield run
