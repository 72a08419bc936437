"""The baseline: the target's own autoregressive loop with a key-value cache, over the same sessions as the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dflash.decode.rows import Gained, last_valid
from dflash.decode.run import Opening, Run
from dflash.decode.sampling import Sampling, Uniforms
from dflash.target.target import Target
from dflash.types import DecodeTiming, DecodeTrace


class AutoregressiveDecoder:
    """One token per target pass and row; finished rows leave the batch."""

    def __init__(self, target: Target, *, sampling: Sampling | None = None):
        self.target = target
        self.sampling = sampling if sampling is not None else Sampling()

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
                on_tokens(len(emissions))
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
        return Run(
            lambda opening: _Steps(self.target, self.sampling, opening, max_new_tokens=max_new_tokens),
            prompts,
            device=self.target.device,
            max_new_tokens=max_new_tokens,
            stops=frozenset(stop_token_ids),
            indices=indices,
            batch_size=batch_size,
        )


class _Steps:
    """The rows of a batch: the session that holds them, and the token that each has decided last."""

    def __init__(self, target: Target, sampling: Sampling, opening: Opening, *, max_new_tokens: int):
        self.target, self.sampling = target, sampling
        ids_BS, lengths = opening.ids_BS, opening.lengths
        device, rows = ids_BS.device, {"room": opening.room, "passing": opening.passing}
        self.session = target.open(len(ids_BS), capacity=opening.capacity(max_new_tokens), **rows)
        self.uniforms = Uniforms(sampling, indices=opening.indices, length=max_new_tokens, device=device)
        lengths_B = torch.tensor(lengths, device=device)
        self.position_B = torch.zeros_like(lengths_B)
        hidden_BSH, _ = self.session.advance(ids_BS)
        self.session.keep(lengths_B, lengths=lengths)
        self.anchor_B = self._choose(last_valid(hidden_BSH, lengths_B))

    def round(self, lengths: list[int]) -> list[Gained]:
        self.position_B = self.position_B + 1
        hidden_B1H, _ = self.session.advance(self.anchor_B[:, None])
        self.session.keep(torch.ones_like(self.anchor_B), lengths=lengths)
        self.anchor_B = self._choose(hidden_B1H[:, 0])
        return [Gained([token]) for token in self.anchor_B.tolist()]  # the one host sync of a round

    def select(self, rows: Tensor, lengths: list[int]) -> None:
        self.session.select(rows, lengths=[length - 1 for length in lengths])
        self.uniforms.select(rows)
        self.anchor_B, self.position_B = self.anchor_B[rows], self.position_B[rows]

    def join(self, other: _Steps) -> None:
        self.session.join(other.session)
        self.uniforms.join(other.uniforms)
        self.anchor_B = torch.cat([self.anchor_B, other.anchor_B])
        self.position_B = torch.cat([self.position_B, other.position_B])

    def _choose(self, hidden_BH: Tensor) -> Tensor:
        numbers = self.uniforms.at("target", self.position_B, 1)
        return self.sampling.choose(self.target.logits(hidden_BH), None if numbers is None else numbers[:, 0])
