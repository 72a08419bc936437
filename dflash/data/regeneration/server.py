"""An OpenAI-compatible server (vLLM, SGLang) as an engine: bounded concurrency, retries, tokens in and tokens out.

Prompts go to ``/completions`` as token ids and responses come back as token ids, as sampled. Text would have to be
encoded again, which need not give the same tokens, so it is taken only if ``accept_text`` says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np
import requests

from dflash.data.regeneration.backoff import Backoff
from dflash.data.regeneration.engine import (
    LENGTH,
    STOP,
    Answer,
    EngineError,
    Failure,
    Outcome,
    Question,
    Refusal,
)

CONNECT_SECONDS = 10.0
AGAIN = frozenset({408, 425, 429})  # and all of 5xx
HOPELESS = frozenset({401, 403, 404, 405})  # a wrong key, address or model: no prompt will fare better


@dataclass(frozen=True, kw_only=True)
class ServerCall:
    """A request, its prompt and seed apart. model: the name it is served under. stop_token_ids: what ends a response.

    sampling: further fields, such as temperature and top_p. extra: fields of one server only, which win over all.
    """

    model: str
    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    seed: int = 0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, question: Question) -> dict[str, Any]:
        """The JSON of one request: the seed is the prompt's own, so that asking again asks the same."""
        seed = int(np.random.SeedSequence([self.seed, question.index]).generate_state(1)[0]) >> 1
        return {
            "model": self.model,
            "prompt": list(question.ids),
            "max_tokens": self.max_new_tokens,
            "seed": seed,
            "stop_token_ids": list(self.stop_token_ids),
            "skip_special_tokens": False,
            "return_token_ids": True,
            **self.sampling,
            **self.extra,
        }


class NotUnderstood(Exception):
    """A response that is no completion: a proxy's page, or one cut off. Asking again may help."""


class ServerEngine:
    """url: up to and with ``/v1``. concurrency: requests in flight. timeout_seconds: the longest silence of a request.

    encode: text to ids, for ``accept_text``. stop_token_id: what the server leaves out at the end of a response that
    it stopped, where it does not say so. num_retries counts. Raises ValueError for values out of bounds.
    """

    def __init__(
        self,
        *,
        url: str,
        call: ServerCall,
        encode: Callable[[str], Sequence[int]],
        stop_token_id: int,
        concurrency: int = 64,
        timeout_seconds: float = 600.0,
        backoff: Backoff | None = None,
        accept_text: bool = False,
        key: str | None = None,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"engine.url={url}: must begin with http:// or https://, as in http://localhost:8000/v1")
        if concurrency < 1 or timeout_seconds <= 0:
            raise ValueError(
                f"engine.concurrency={concurrency}, engine.timeout_seconds={timeout_seconds}: must be at least 1 and "
                "above 0; try 64 and 600"
            )
        self.address = url.rstrip("/") + "/completions"
        self.call = call
        self.encode = encode
        self.stop_token_id = stop_token_id
        self.concurrency = concurrency
        self.timeout_seconds = timeout_seconds
        self.backoff = backoff if backoff is not None else Backoff()
        self.accept_text = accept_text
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.num_retries = 0
        self._counting = threading.Lock()

    def identity(self) -> dict[str, Any]:
        return {"engine": "server", "model": self.call.model}

    def answers(self, questions: Iterator[Question]) -> Iterator[tuple[Question, Outcome]]:
        work = _Workers(self._answer, self.concurrency)
        try:
            for question in questions:
                work.submit(question)
                if work.in_flight == self.concurrency:
                    yield work.next_done()
            while work.in_flight:
                yield work.next_done()
        finally:
            work.stop()

    def _answer(self, question: Question, session: requests.Session, stopping: threading.Event) -> Outcome:
        """The outcome after at most ``backoff.attempts`` requests."""
        rng, body = np.random.default_rng([self.call.seed, question.index]), self.call.body(question)
        failure = Failure("not asked", "the run ended first")
        for attempt in range(self.backoff.attempts):
            if stopping.is_set():
                break
            retry_after = None
            try:
                response = session.post(
                    self.address, json=body, headers=self.headers, timeout=(CONNECT_SECONDS, self.timeout_seconds)
                )
                if response.status_code == 200:
                    return self._outcome(response)
                refusal = self._refusal(response)
                if refusal is not None:
                    return refusal
                failure = Failure(f"HTTP {response.status_code}", response.text[:200])
                retry_after = response.headers.get("Retry-After")
            except (requests.RequestException, NotUnderstood) as error:
                failure = Failure(type(error).__name__, str(error)[:200])
            if attempt + 1 < self.backoff.attempts:
                with self._counting:
                    self.num_retries += 1
                stopping.wait(self.backoff.seconds(attempt, rng, retry_after=retry_after))
        return failure

    def _refusal(self, response: requests.Response) -> Refusal | None:
        """None where asking again may help. EngineError where no prompt would get an answer."""
        status = response.status_code
        if status in HOPELESS:
            raise EngineError(
                f"engine.url: {self.address} answers HTTP {status} to model {self.call.model!r} ({response.text[:200]}"
                "); check engine.url, engine.model and engine.key_variable"
            )
        if status in AGAIN or status >= 500:
            return None
        return Refusal(f"HTTP {status}", response.text[:200])

    def _outcome(self, response: requests.Response) -> Outcome:
        try:
            choice = response.json()["choices"][0]
            reason, text, ids = choice["finish_reason"], choice["text"], choice.get("token_ids")
            stop = next((choice[key] for key in ("stop_reason", "matched_stop") if choice.get(key) is not None), None)
            exact = ids is not None
            tokens = tuple(int(token) for token in (ids if exact else self.encode(text)))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise NotUnderstood(f"no completion: {response.text[:100]!r}") from error
        if not exact and not self.accept_text:
            raise EngineError(
                f"engine.url: {self.address} returns text and no token ids; use a server that knows return_token_ids, "
                "or encode its text again with engine.accept_text=true (the tokens may then differ from those sampled)"
            )
        if reason not in (STOP, LENGTH):
            return Refusal(f"finish_reason {reason}", text[:200])
        stops = self.call.stop_token_ids
        if reason == STOP and not (tokens and tokens[-1] in stops):
            tokens = (*tokens, stop if isinstance(stop, int) and stop in stops else self.stop_token_id)
        return Answer(tokens, reason, exact)


Work = Callable[[Question, requests.Session, threading.Event], Outcome]


class _Workers:
    """Threads, each with a session of its own, started as they are needed. Daemons: a run that is over waits for none.

    An exception of the work comes out of ``next_done``.
    """

    def __init__(self, work: Work, most: int):
        self.work = work
        self.most = most
        self.in_flight = 0
        self.num_threads = 0
        self.stopping = threading.Event()
        self.waiting: SimpleQueue[Question | None] = SimpleQueue()
        self.done: SimpleQueue[tuple[Question, Outcome | Exception]] = SimpleQueue()

    def submit(self, question: Question) -> None:
        self.in_flight += 1
        if self.num_threads < min(self.in_flight, self.most):
            self.num_threads += 1
            threading.Thread(target=self._run, daemon=True).start()
        self.waiting.put(question)

    def next_done(self) -> tuple[Question, Outcome]:
        question, outcome = self.done.get()
        self.in_flight -= 1
        if isinstance(outcome, Exception):
            raise outcome
        return question, outcome

    def stop(self) -> None:
        self.stopping.set()
        for _ in range(self.num_threads):
            self.waiting.put(None)

    def _run(self) -> None:
        with requests.Session() as session:
            while (question := self.waiting.get()) is not None and not self.stopping.is_set():
                try:
                    self.done.put((question, self.work(question, session, self.stopping)))
                except Exception as error:  # handed to the main thread, which raises it
                    self.done.put((question, error))
