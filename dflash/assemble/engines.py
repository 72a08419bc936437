"""Who answers in a regeneration, as conf ``engine`` names it: the target in this process, or a server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dflash.data.regeneration.backoff import Backoff
from dflash.data.regeneration.engine import Engine, Generate
from dflash.data.regeneration.local import LocalEngine
from dflash.data.regeneration.server import ServerCall, ServerEngine
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.generate import Decoder
from dflash.decode.sampling import Sampling
from dflash.hub.source import find_source
from dflash.target.load import LoadedTarget
from dflash.target.reading import Reading


class EngineRecipe(Protocol):
    """What an option of conf ``engine`` builds."""

    def open(
        self, reading: Reading, load: Callable[[], LoadedTarget], *, sampling: Sampling, max_new_tokens: int
    ) -> Engine:
        """The engine. ``load``: the weights, for those that need them."""
        ...


@dataclass(frozen=True, kw_only=True)
class LocalRecipe:
    """The target in this process; draft: a run, checkpoint or draft folder to decode speculatively with, or None."""

    batch_size: int = 64
    draft: str | None = None

    def open(
        self, reading: Reading, load: Callable[[], LoadedTarget], *, sampling: Sampling, max_new_tokens: int
    ) -> Engine:
        loaded = load()
        decoder = AutoregressiveDecoder(loaded.target, sampling=sampling)
        if self.draft is not None:
            draft, _ = find_source(self.draft).load(loaded)
            decoder = SpeculativeDecoder(loaded.target, draft, sampling=sampling)
        stops, size = loaded.stop_token_ids, self.batch_size
        generate = as_generate(decoder, max_new_tokens=max_new_tokens, stop_token_ids=stops, batch_size=size)
        identity = {"engine": "local", "target": loaded.target.fingerprint(), "dtype": str(loaded.target.dtype)}
        return LocalEngine(generate, identity=identity, batch_size=size, stop_token_ids=stops)


def as_generate(decoder: Decoder, **limits) -> Generate:
    """The decoder as what regeneration asks for responses; ``limits`` go to it."""

    def generate(prompts: list[list[int]], numbers: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        for place, trace in decoder.as_done(prompts, indices=numbers, **limits):
            yield place, trace.tokens

    return generate


@dataclass(frozen=True, kw_only=True)
class ServerRecipe:
    """An OpenAI-compatible server; see ``ServerEngine``.

    model: the name it is served under, default the target's. key_variable: the environment variable that holds its
    key, or None. extra: further fields of each request.
    """

    url: str
    model: str | None = None
    concurrency: int = 64
    timeout_seconds: float = 600.0
    backoff: Backoff = field(default_factory=Backoff)
    accept_text: bool = False
    key_variable: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def open(
        self, reading: Reading, load: Callable[[], LoadedTarget], *, sampling: Sampling, max_new_tokens: int
    ) -> Engine:
        key = None if self.key_variable is None else os.environ.get(self.key_variable)
        if self.key_variable is not None and not key:
            raise ValueError(f"engine.key_variable={self.key_variable}: no such environment variable is set")
        if not (self.model or reading.name):
            raise ValueError("engine.model=null: this target has no name; give the one it is served under")
        names = ("temperature", "top_k", "top_p", "min_p")
        values = {name: value for name in names if (value := getattr(sampling, name)) is not None}
        call = ServerCall(
            model=self.model or reading.name,
            max_new_tokens=max_new_tokens,
            stop_token_ids=reading.stop_token_ids,
            seed=sampling.seed,
            sampling=values,
            extra=self.extra,
        )
        tokenizer = reading.tokenizer
        return ServerEngine(
            url=self.url,
            call=call,
            encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            stop_token_id=tokenizer.eos_token_id,
            concurrency=self.concurrency,
            timeout_seconds=self.timeout_seconds,
            backoff=self.backoff,
            accept_text=self.accept_text,
            key=key,
        )
