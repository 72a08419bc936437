"""The speculative decoder: the serving flow of DFlash over target and draft sessions (paper section 3).

A round is one draft pass and one target pass. Every row has its own length; what the target does not keep is undone.
The output is exactly the target's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dflash.decode.batch import Batch, Engine
from dflash.decode.generate import Decoder
from dflash.decode.proposer import Proposer, proposer_of
from dflash.decode.run import Opening
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Match, RoundCosts, Verifier, measure_costs
from dflash.draft.draft import Draft
from dflash.draft.heads.slots import Work
from dflash.target.target import Target


@dataclass(frozen=True)
class StreamedToken:
    """A token as it comes. round: 0 is the prefill, which decides the first token. drafted: the draft proposed it and
    the target accepted it; else it is the target's own."""

    token: int
    round: int
    drafted: bool


class SpeculativeDecoder(Decoder):
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
    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_token_ids: Iterable[int] = (),
        first_index: int = 0,
    ) -> Iterator[StreamedToken]:
        """The tokens that ``generate`` gives for this prompt alone, those of a round as soon as it is over."""
        run = self._start([prompt], max_new_tokens, stop_token_ids, [first_index], 1)
        for [(gained, count)] in run.rounds():
            last = len(gained.tokens) - 1
            for i, token in enumerate(gained.tokens[:count]):
                yield StreamedToken(token, run.num_rounds, drafted=i < last)

    def opener(self, *, most_rows: int, max_new_tokens: int) -> Callable[[Opening], Batch]:
        verifier = self.verifier
        if self.block_size > 1:
            verifier = verifier.ready(lambda most, grow: self._measured(most_rows, most, grow))
        engine = Engine(self.target, self.proposer, self.block_size, self.sampling, verifier)
        return lambda opening: Batch(engine, opening, max_new_tokens=max_new_tokens)

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
