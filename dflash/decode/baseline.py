"""The baseline: the target's own autoregressive loop with a key-value cache, over the same sessions as the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from dflash.decode.rows import Row, clock, last_valid, pad_prompts
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
        on_tokens: Callable[[int], None] | None = None,
    ) -> tuple[list[DecodeTrace], DecodeTiming]:
        """Decode all prompts as one batch. ``first_index``: the first prompt's number, which seeds its sampling."""
        target, device, stops = self.target, self.target.device, frozenset(stop_token_ids)
        ids_BS = pad_prompts(prompts, device=device)
        lengths = [len(prompt) for prompt in prompts]
        start = clock(device)
        session = target.open(len(prompts), capacity=max(lengths) + max_new_tokens)
        uniforms = Uniforms(
            self.sampling, indices=range(first_index, first_index + len(prompts)), length=max_new_tokens, device=device
        )
        lengths_B = torch.tensor(lengths, device=device)
        position_B = torch.zeros_like(lengths_B)
        hidden_BSH, _ = session.advance(ids_BS)
        session.keep(lengths_B, lengths=lengths)
        token_B = self._choose(last_valid(hidden_BSH, lengths_B), uniforms, position_B)
        rows = running = [Row(i) for i in range(len(prompts))]
        prefilled = clock(device)
        num_rounds = 0
        while True:
            emitted = token_B.tolist()  # the one host sync of a round
            for row, token in zip(running, emitted, strict=True):
                row.emit([token], limit=max_new_tokens, stop_token_ids=stops)
                if num_rounds:
                    row.lengths.append(1)
            if on_tokens is not None:
                on_tokens(len(running))
            alive = [i for i, row in enumerate(running) if not row.stopped and len(row.tokens) < max_new_tokens]
            if not alive:
                break
            if len(alive) < len(running):
                keep = torch.tensor(alive, device=device)
                running = [running[i] for i in alive]
                token_B, position_B = token_B[keep], position_B[keep]
                lengths = [lengths[i] for i in alive]
                session.select(keep, lengths=lengths)
                uniforms.select(keep)
            num_rounds += 1
            lengths = [length + 1 for length in lengths]
            position_B = position_B + 1
            hidden_BQH, _ = session.advance(token_B[:, None])
            session.keep(torch.ones_like(token_B), lengths=lengths)
            token_B = self._choose(hidden_BQH[:, 0], uniforms, position_B)
        done = clock(device)
        return [row.trace() for row in rows], DecodeTiming(prefilled - start, done - prefilled, num_rounds)

    def _choose(self, hidden_BH, uniforms: Uniforms, position_B):
        numbers = uniforms.at("target", position_B, 1)
        return self.sampling.choose(self.target.logits(hidden_BH), None if numbers is None else numbers[:, 0])
