"""The target in this process as an engine. The decoder is handed in: data knows nothing of decoding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from dflash.data.regeneration.engine import LENGTH, STOP, Answer, Generate, Outcome, Question

BATCHES_A_CALL = 8  # a place in the batch is only empty at the end of a call


class LocalEngine:
    """``generate`` decodes ``batch_size`` prompts at a time and is handed several times as many. Raises ValueError for
    a batch size below 1.
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
            prompts, numbers = [list(question.ids) for question in taken], [question.index for question in taken]
            for place, response in self.generate(prompts, numbers):
                tokens = tuple(int(token) for token in response)
                yield taken[place], Answer(tokens, STOP if tokens and tokens[-1] in self.stops else LENGTH)
