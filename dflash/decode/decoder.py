"""The speculative decoder: the serving flow of DFlash over target and draft sessions (paper section 3).

A round is one draft pass and one target pass. Every row has its own length; what the target does not keep is written
over. The output is exactly the target's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from dflash.decode.rows import Row, clock, last_valid, pad_prompts
from dflash.decode.sampling import Sampling, Uniforms
from dflash.decode.verify import Match, Verifier
from dflash.draft.draft import Draft
from dflash.target.target import Target
from dflash.types import DecodeTiming, DecodeTrace, Proposal, Verdict


class SpeculativeDecoder:
    """Blocks of ``block_size`` tokens, anchor included; it may differ from the block size the draft was trained at."""

    def __init__(
        self,
        target: Target,
        draft: Draft,
        *,
        block_size: int | None = None,
        sampling: Sampling | None = None,
        verifier: Verifier | None = None,
    ):
        self.target = target
        self.draft = draft
        self.block_size = block_size if block_size is not None else draft.shape.block_size
        self.sampling = sampling if sampling is not None else Sampling()
        self.verifier = verifier if verifier is not None else Match()
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size}: must be at least 1")

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
        device, stops = self.target.device, frozenset(stop_token_ids)
        ids_BS, lengths_B = pad_prompts(prompts, device=device)
        start = clock(device)
        batch = _Batch(self, ids_BS, lengths_B, max_new_tokens=max_new_tokens, first_index=first_index)
        rows = running = [Row(i) for i in range(len(prompts))]
        prefilled = clock(device)
        emitted: list[list[int]] = [[token] for token in batch.anchor_B.tolist()]
        num_rounds = 0
        while True:
            for row, tokens in zip(running, emitted, strict=True):
                count = row.emit(tokens, limit=max_new_tokens, stop_token_ids=stops)
                if num_rounds:
                    row.lengths.append(count)
                if on_tokens is not None:
                    on_tokens(count)
            alive = [i for i, row in enumerate(running) if not row.stopped and len(row.tokens) < max_new_tokens]
            if not alive:
                break
            lengths = [len(prompts[running[i].index]) + len(running[i].tokens) for i in alive]
            if len(alive) < len(running):
                batch.select(torch.tensor(alive, device=device), lengths)
                running = [running[i] for i in alive]
            emitted = batch.round(lengths)
            num_rounds += 1
        done = clock(device)
        return [row.trace() for row in rows], DecodeTiming(prefilled - start, done - prefilled, num_rounds)


class _Batch:
    """The device's side: sessions, anchors and positions of the rows still running."""

    def __init__(
        self, decoder: SpeculativeDecoder, ids_BS: Tensor, lengths_B: Tensor, *, max_new_tokens: int, first_index: int
    ):
        self.decoder = decoder
        target, draft, K = decoder.target, decoder.draft, decoder.block_size
        B, longest = ids_BS.shape
        capacity = longest + max_new_tokens + K  # the last block may reach past the last token wanted
        self.target_session = target.open(B, capacity=capacity, taps=draft.shape.taps if K > 1 else ())
        self.draft_session = draft.open(B, capacity=capacity) if K > 1 else None
        self.uniforms = Uniforms(
            decoder.sampling,
            indices=range(first_index, first_index + B),
            length=max_new_tokens + K,
            device=ids_BS.device,
        )
        self.noise_K1 = torch.full((K - 1,), draft.shape.mask_token_id, device=ids_BS.device)
        hidden_BSH, taps_BSTH = self.target_session.advance(ids_BS)
        self._keep(taps_BSTH, lengths_B, longest=longest, ragged=bool((lengths_B != longest).any()))
        self.position_B = torch.zeros_like(lengths_B)  # output position of the next token to decide
        numbers = self.uniforms.at("target", self.position_B, 1)
        logits_BV = target.logits(last_valid(hidden_BSH, lengths_B))
        self.anchor_B = decoder.sampling.choose(logits_BV, None if numbers is None else numbers[:, 0])
        self.position_B = self.position_B + 1

    def round(self, lengths: list[int]) -> list[list[int]]:
        """One draft pass and one target pass; the tokens each row gains, bonus included.

        ``lengths``: tokens each row has so far, anchor included.
        """
        proposal = self._propose()
        block_BK = torch.cat([self.anchor_B[:, None], proposal.tokens_BP], dim=1)
        hidden_BKH, taps_BKTH = self.target_session.advance(block_BK)
        logits_BKV = self.decoder.target.logits(hidden_BKH)
        verdict = self.decoder.verifier.judge(
            logits_BKV, proposal, self.decoder.sampling, self.uniforms, self.position_B
        )
        gained = self._sync(proposal, verdict)
        kept = [len(tokens) for tokens in gained]
        after = [length - 1 + count for length, count in zip(lengths, kept, strict=True)]
        self._keep(taps_BKTH, verdict.accepted_B + 1, longest=max(after), ragged=len(set(after)) > 1)
        self.anchor_B = verdict.bonus_B
        self.position_B = self.position_B + verdict.accepted_B + 1
        return gained

    def select(self, rows: Tensor, lengths: list[int]) -> None:
        """Keep only these rows of the batch. ``lengths``: tokens each of them has so far, anchor included.

        The longest row may be among those that leave; its length, past the limit perhaps, must not stay behind.
        """
        longest = max(lengths) - 1
        self.target_session.select(rows, longest=longest)
        if self.draft_session is not None:
            self.draft_session.select(rows, longest=longest, ragged=len(set(lengths)) > 1)
        self.uniforms.select(rows)
        self.anchor_B, self.position_B = self.anchor_B[rows], self.position_B[rows]

    def _propose(self) -> Proposal:
        decoder, B = self.decoder, len(self.anchor_B)
        noise_BK = torch.cat([self.anchor_B[:, None], self.noise_K1.expand(B, -1)], dim=1)
        hidden_BKH = decoder.target.embed(noise_BK)
        if self.draft_session is not None:  # at block size 1 there is nothing to propose
            hidden_BKH = self.draft_session.propose(hidden_BKH)
        logits_BPV = decoder.target.logits(hidden_BKH[:, 1:].to(decoder.target.dtype))
        return decoder.verifier.propose(logits_BPV, decoder.sampling, self.uniforms, self.position_B)

    def _keep(self, taps: Tensor | None, counts_B: Tensor, *, longest: int, ragged: bool) -> None:
        self.target_session.keep(counts_B, longest=longest)
        if self.draft_session is not None:
            self.draft_session.extend(taps, counts_B, longest=longest, ragged=ragged)

    @staticmethod
    def _sync(proposal: Proposal, verdict: Verdict) -> list[list[int]]:
        """The one host sync of a round: everything the host needs in one transfer."""
        packed = torch.cat([verdict.accepted_B[:, None], verdict.bonus_B[:, None], proposal.tokens_BP], dim=1)
        return [[*tokens[:accepted], bonus] for accepted, bonus, *tokens in packed.tolist()]
