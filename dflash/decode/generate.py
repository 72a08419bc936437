"""What every decoder offers: prompts in, traces out, all together or each as soon as it is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from dflash.decode.run import Opening, Rows, Run
from dflash.decode.sampling import Sampling
from dflash.target.target import Target
from dflash.types import DecodeTiming, DecodeTrace


class Decoder(ABC):
    """A target's text, chosen by ``sampling``; how it is found is what decoders differ in."""

    target: Target
    sampling: Sampling

    @abstractmethod
    def opener(self, *, most_rows: int, max_new_tokens: int) -> Callable[[Opening], Rows]:
        """What reads prompts into batches of at most so many rows, which then run."""

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Iterable[int] = (),
        first_index: int = 0,
        batch_size: int | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> tuple[list[DecodeTrace], DecodeTiming]:
        """Decode the prompts, ``batch_size`` at a time, the next as soon as one is done; None: all at once.

        ``first_index``: the first prompt's number, which seeds its sampling. ``on_tokens``: told after each round how
        many tokens all rows gained.
        """
        indices = range(first_index, first_index + len(prompts))
        run = self._start(prompts, max_new_tokens, stop_token_ids, indices, batch_size)
        for emissions in run.rounds():
            if on_tokens is not None:
                on_tokens(sum(count for _, count in emissions))
        return run.traces(), run.timing()

    @torch.no_grad()
    def as_done(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Iterable[int] = (),
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Iterator[tuple[int, DecodeTrace]]:
        """What ``generate`` gives, each prompt as soon as it is done, with its place among the prompts. ``indices``:
        their numbers, which seed their sampling; None: their places."""
        numbers = range(len(prompts)) if indices is None else indices
        yield from self._start(prompts, max_new_tokens, stop_token_ids, numbers, batch_size).as_done()

    def _start(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_token_ids: Iterable[int],
        indices: Sequence[int],
        batch_size: int | None,
    ) -> Run:
        most_rows = min(len(prompts), batch_size or len(prompts))
        return Run(
            self.opener(most_rows=most_rows, max_new_tokens=max_new_tokens),
            prompts,
            device=self.target.device,
            max_new_tokens=max_new_tokens,
            stops=frozenset(stop_token_ids),
            indices=indices,
            batch_size=batch_size,
        )
