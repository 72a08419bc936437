"""The run of a regeneration: questions to an engine, outcomes to shards, until every prompt has its outcome.

Continuation is exact: the questions are read again from the start, what the folder knows is not asked again, and a
prompt's outcome does not depend on when it is asked. Shards stay open together, so that one slow response holds up
nothing but its own.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from dflash.data.regeneration.engine import (
    LENGTH,
    STOP,
    Answer,
    Engine,
    EngineError,
    Failure,
    Outcome,
    Question,
    Refusal,
)
from dflash.data.regeneration.folder import ResponseFolder


@dataclass
class Tally:
    """Counts over the prompts that have an outcome. num_truncated of num_answered were cut by the length limit.

    num_encoded_again: responses whose tokens come from text. num_known: prompts answered by an earlier run.
    failures: prompts without an outcome, by reason; they are asked again by the next run.
    """

    num_prompts: int = 0
    num_answered: int = 0
    num_truncated: int = 0
    num_encoded_again: int = 0
    num_duplicates: int = 0
    num_known: int = 0
    num_prompt_tokens: int = 0
    num_response_tokens: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, question: Question, outcome: Outcome) -> None:
        if isinstance(outcome, Failure):
            self.failures[outcome.reason] += 1
            return
        self.num_prompts += 1
        if isinstance(outcome, Refusal):
            self.refusals[outcome.reason] += 1
            return
        self.num_answered += 1
        self.num_truncated += outcome.finish == LENGTH
        self.num_encoded_again += not outcome.exact
        self.num_prompt_tokens += len(question.ids)
        self.num_response_tokens += len(outcome.tokens)

    def add_duplicate(self) -> None:
        self.num_prompts += 1
        self.num_duplicates += 1

    def report(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "refusals": dict(self.refusals), "failures": dict(self.failures)}


@dataclass
class _Shard:
    number: int
    questions: list[Question]
    outcomes: dict[int, Outcome]
    duplicates: dict[int, int]

    @property
    def full(self) -> bool:
        return len(self.outcomes) + len(self.duplicates) == len(self.questions)


def regenerate_set(
    questions: Iterable[Question],
    engine: Engine,
    folder: ResponseFolder,
    *,
    shard_size: int = 256,
    keep_truncated: bool = True,
    accept_failures: bool = False,
    give_up_after: int = 64,
    watch: Callable[[Tally], None] | None = None,
) -> Tally:
    """Have ``engine`` answer all questions, numbered 0, 1, 2, ..., into ``folder``; what was done before is kept.

    A prompt whose ids came before is a duplicate and gets no row. keep_truncated: whether responses cut by the length
    limit get one. accept_failures: failures become refusals, so that the set can be finished without them.
    give_up_after: failures in a row after which the engine is taken for gone. watch: called behind every outcome.

    Raises EngineError where the engine is of no use, and ValueError if the folder holds answers to other questions.
    Whatever happens, outcomes already there are kept.
    """
    if shard_size < 1 or give_up_after < 1:
        raise ValueError(f"shard_size={shard_size}, give_up_after={give_up_after}: must both be at least 1")
    run = _Run(folder, shard_size, keep_truncated, accept_failures, give_up_after, watch or (lambda tally: None))
    with folder.alone(), closing(engine.answers(run.open_questions(iter(questions)))) as answers:
        for question, outcome in answers:
            run.take(question, outcome)
        return run.finish()


class _Run:
    def __init__(self, folder, shard_size, keep_truncated, accept_failures, give_up_after, watch):
        self.folder: ResponseFolder = folder
        self.shard_size = shard_size
        self.keep_truncated = keep_truncated
        self.accept_failures = accept_failures
        self.give_up_after = give_up_after
        self.watch = watch
        self.tally = Tally()
        self.open: dict[int, _Shard] = {}
        self.first_seen: dict[bytes, int] = {}  # digest of a prompt's ids -> its index
        self.failures_in_a_row = 0

    def open_questions(self, questions: Iterator[Question]) -> Iterator[Question]:
        """The questions that have no outcome yet, shard by shard."""
        for number, chunk in enumerate(_chunks(questions, self.shard_size)):
            known, whole = self.folder.known(number, chunk)
            duplicates = dict(self._duplicates(chunk))
            shard = _Shard(number, chunk, {}, duplicates)
            for question in chunk:
                if question.index in duplicates:
                    self.tally.add_duplicate()
                elif question.index in known:
                    shard.outcomes[question.index] = known[question.index]
                    self.tally.add(question, known[question.index])
                    self.tally.num_known += 1
            self.watch(self.tally)
            if not shard.full:
                self.open[number] = shard
                yield from (q for q in chunk if q.index not in shard.outcomes and q.index not in duplicates)
            elif not whole:
                self.folder.write_shard(number, chunk, shard.outcomes, duplicates)

    def _duplicates(self, chunk: list[Question]) -> Iterator[tuple[int, int]]:
        for question in chunk:
            digest = hashlib.blake2b(repr(question.ids).encode(), digest_size=16).digest()
            first = self.first_seen.setdefault(digest, question.index)
            if first != question.index:
                yield question.index, first

    def take(self, question: Question, outcome: Outcome) -> None:
        outcome = self._judged(outcome)
        if isinstance(outcome, Failure):
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= self.give_up_after:
                raise EngineError(
                    f"engine: {self.failures_in_a_row} prompts in a row got no answer, the last one {outcome.reason} "
                    f"({outcome.detail}); outcomes so far are kept: see to the engine and give the same command again"
                )
            if self.accept_failures:
                outcome = Refusal(outcome.reason, outcome.detail)
        else:
            self.failures_in_a_row = 0
        self.tally.add(question, outcome)
        if not isinstance(outcome, Failure):
            self._keep(question, outcome)
        self.watch(self.tally)

    def _judged(self, outcome: Outcome) -> Outcome:
        if not isinstance(outcome, Answer):
            return outcome
        if len(outcome.tokens) <= (outcome.finish == STOP):
            return Refusal("empty", f"finish {outcome.finish}, {len(outcome.tokens)} tokens")
        if outcome.finish == LENGTH and not self.keep_truncated:
            return Refusal("truncated", f"{len(outcome.tokens)} tokens")
        return outcome

    def _keep(self, question: Question, outcome: Answer | Refusal) -> None:
        shard = self.open[question.index // self.shard_size]
        if question.index in shard.outcomes:
            raise RuntimeError(f"the engine answered prompt {question.index} twice")
        shard.outcomes[question.index] = outcome
        self.folder.note(shard.number, question, outcome)
        if shard.full:
            self.folder.write_shard(shard.number, shard.questions, shard.outcomes, shard.duplicates)
            del self.open[shard.number]

    def finish(self) -> Tally:
        missing = sum(len(s.questions) - len(s.outcomes) - len(s.duplicates) for s in self.open.values())
        if missing != self.tally.failures.total():
            raise RuntimeError(f"the engine lost prompts: {missing} open, {self.tally.failures.total()} failures told")
        if not missing:
            self.folder.finish(self.tally.report())
        return self.tally


def _chunks(questions: Iterator[Question], size: int) -> Iterator[list[Question]]:
    while chunk := list(islice(questions, size)):
        yield chunk
