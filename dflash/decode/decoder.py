"""The speculative decoder: the serving flow of DFlash over target and draft sessions (paper section 3).

A round is one draft pass and one target pass. Every row has its own length; what the target does not keep is undone.
The output is exactly the target's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dflash.decode.batch import Batch, Engine
from dflash.decode.proposer import Proposer, proposer_of
from dflash.decode.rows import Gained, Row, clock, pad_prompts
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Match, RoundCosts, Verifier, measure_costs
from dflash.draft.draft import Draft
from dflash.draft.heads.slots import Work
from dflash.target.target import Target
from dflash.types import DecodeTiming, DecodeTrace


@dataclass(frozen=True)
class StreamedToken:
    """A token as it comes. round: 0 is the prefill, which decides the first token. drafted: the draft proposed it and
    the target accepted it; else it is the target's own."""

    token: int
    round: int
    drafted: bool


class SpeculativeDecoder:
    """Blocks of ``block_size`` tokens, anchor included; it may differ from the block size the draft was trained at.

    Raises ValueError for a block size below 1, for trees over a target with recurrent layers or from a draft that goes
    left to right, and for a verifier that asks for confidence where the draft's head has none.
    """

    def __init__(
        self,
        target: Target,
        draft: Draft | Proposer,
        *,
        block_size: int | None = None,
        sampling: Sampling | None = None,
        verifier: Verifier | None = None,
    ):
        self.target = target
        self.draft = draft
        self.proposer = proposer_of(draft)
        self.block_size = block_size if block_size is not None else self.proposer.block_size
        self.sampling = sampling if sampling is not None else Sampling()
        self.verifier = verifier if verifier is not None else Match()
        self._costs: dict[tuple[int, int], RoundCosts] = {}
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}: must be at least 1")
        if self.verifier.needs_tree and target.plan.recurrent:
            raise target.tree_error()
        if self.verifier.needs_tree and self.proposer.sequential:
            raise ValueError(
                f"verify={self.verifier.name}: trees grow over slots drafted all at once, and this draft goes left "
                "to right; choose verify=chain"
            )
        if self.verifier.needs_confidence and not self.proposer.confident:
            raise ValueError(
                "decoding.verifier.trained=true: this draft has no confidence head; train one with heads=dspark, or "
                "leave decoding.verifier.trained=false"
            )

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_token_ids: Iterable[int] = (),
        first_index: int = 0,
        on_tokens: Callable[[int], None] | None = None,
    ) -> tuple[list[DecodeTrace], DecodeTiming]:
        """Decode all prompts as one batch. ``first_index``: the first prompt's number, which seeds its sampling."""
        run = self._start(prompts, max_new_tokens, stop_token_ids, first_index)
        for emissions in run.rounds():
            if on_tokens is not None:
                for _, count in emissions:
                    on_tokens(count)
        done = clock(self.target.device)
        timing = DecodeTiming(run.prefilled - run.started, done - run.prefilled, run.num_rounds)
        return [row.trace() for row in run.rows], timing

    @torch.no_grad()
    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_token_ids: Iterable[int] = (),
        first_index: int = 0,
    ) -> Iterator[StreamedToken]:
        """The tokens that ``generate`` gives for this prompt alone, those of a round as soon as it is over."""
        run = self._start([prompt], max_new_tokens, stop_token_ids, first_index)
        for [(gained, count)] in run.rounds():
            last = len(gained.tokens) - 1
            for i, token in enumerate(gained.tokens[:count]):
                yield StreamedToken(token, run.num_rounds, drafted=i < last)

    def _start(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_token_ids: Iterable[int],
        first_index: int,
    ) -> _Run:
        verifier = self.verifier
        if self.block_size > 1:
            verifier = verifier.ready(lambda most, grow: self._measured(len(prompts), most, grow))
        engine = Engine(self.target, self.proposer, self.block_size, self.sampling, verifier)
        return _Run(
            engine, prompts, max_new_tokens=max_new_tokens, stops=frozenset(stop_token_ids), first_index=first_index
        )

    def _measured(self, batch_size: int, max_proposals: int, grow: Work) -> RoundCosts:
        """Timed at the first call for this batch size, kept for all others."""
        if isinstance(self.draft, Proposer):
            raise ValueError(
                f"verify={self.verifier.name}: weighs the cost of a draft's pass, here is none; choose verify=chain"
            )
        key = batch_size, max_proposals
        if key not in self._costs:
            self._costs[key] = measure_costs(
                self.target,
                self.proposer,
                batch_size=batch_size,
                block_size=self.block_size,
                max_proposals=max_proposals,
                grow=grow,
            )
        return self._costs[key]


class _Run:
    """The host's side of one batch: limits, stop tokens, and which rows are still running.

    started, prefilled: clock in seconds before and after the prompts. num_rounds: rounds run so far.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stops: frozenset[int],
        first_index: int,
    ):
        self.device = engine.target.device
        self.prompt_lengths = [len(prompt) for prompt in prompts]
        self.max_new_tokens, self.stops = max_new_tokens, stops
        ids_BS = pad_prompts(prompts, device=self.device)
        self.started = clock(self.device)
        self.batch = Batch(engine, ids_BS, self.prompt_lengths, max_new_tokens=max_new_tokens, first_index=first_index)
        self.prefilled = clock(self.device)
        self.rows = [Row(i) for i in range(len(prompts))]
        self.num_rounds = 0

    def rounds(self) -> Iterator[list[tuple[Gained, int]]]:
        """What each running row gained and how much of it was emitted: of the prefill first, then round by round."""
        running = self.rows
        gained = [Gained([token]) for token in self.batch.anchor_B.tolist()]
        while True:
            yield [(gain, self._emit(row, gain)) for row, gain in zip(running, gained, strict=True)]
            alive = [i for i, row in enumerate(running) if self._goes_on(row)]
            if not alive:
                return
            lengths = [self.prompt_lengths[running[i].index] + len(running[i].tokens) for i in alive]
            if len(alive) < len(running):
                self.batch.select(torch.tensor(alive, device=self.device), lengths)
                running = [running[i] for i in alive]
            gained = self.batch.round(lengths)
            self.num_rounds += 1

    def _emit(self, row: Row, gained: Gained) -> int:
        count = row.emit(gained.tokens, limit=self.max_new_tokens, stop_token_ids=self.stops)
        if self.num_rounds:
            row.note(gained, count)
        return count

    def _goes_on(self, row: Row) -> bool:
        return not row.stopped and len(row.tokens) < self.max_new_tokens
