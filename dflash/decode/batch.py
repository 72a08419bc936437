"""The device's side of speculative decoding: sessions, anchors and positions of the rows still running.

Knows nothing of limits and stop tokens, which are the host's; the host learns of a round in one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dflash.decode.proposer import Proposer
from dflash.decode.rows import Gained, last_valid
from dflash.decode.run import Opening
from dflash.decode.sampling import Sampling, Uniforms
from dflash.decode.verify import Verifier
from dflash.draft.heads.slots import Slots
from dflash.target.target import Target
from dflash.types import Proposal, Verdict

MILLIONTHS = 1_000_000  # expected tokens travel to the host among integers


@dataclass(frozen=True)
class Engine:
    """What a batch is decoded with. ``block_size``: tokens of a block, anchor included."""

    target: Target
    proposer: Proposer
    block_size: int
    sampling: Sampling
    verifier: Verifier


class Batch:
    """Opens the sessions and reads the prompts. anchor_B: the last token decided, not yet in any session."""

    def __init__(self, engine: Engine, opening: Opening, *, max_new_tokens: int):
        self.engine = engine
        target, proposer, K = engine.target, engine.proposer, engine.block_size
        ids_BS, lengths = opening.ids_BS, opening.lengths
        lengths_B = torch.tensor(lengths, device=ids_BS.device)
        # the last proposals may reach past the last token wanted
        capacity = opening.capacity(max_new_tokens + 1 + engine.verifier.most_proposals(K - 1))
        taps = proposer.taps if K > 1 else ()
        self.target_session = session = target.open(
            len(ids_BS), capacity=capacity, taps=taps, room=opening.room, passing=opening.passing
        )
        self.proposing = None  # at block size 1 there is nothing to propose
        if K > 1:
            capacity = opening.capacity(max_new_tokens + K)
            self.proposing = proposer.open(session, capacity=capacity, block_size=K)
        length, device = max_new_tokens + K, ids_BS.device
        self.uniforms = Uniforms(engine.sampling, indices=opening.indices, length=length, device=device)
        hidden_BSH, taps_BSTH = self.target_session.advance(ids_BS)
        self._keep(ids_BS, taps_BSTH, lengths_B, lengths=lengths)
        self.position_B = torch.zeros_like(lengths_B)  # output position of the next token to decide
        numbers = self.uniforms.at("target", self.position_B, 1)
        logits_BV = target.logits(last_valid(hidden_BSH, lengths_B))
        self.anchor_B = engine.sampling.choose(logits_BV, None if numbers is None else numbers[:, 0])
        self.position_B = self.position_B + 1

    def round(self, lengths: list[int]) -> list[Gained]:
        """One draft pass and one target pass; what each row gains.

        ``lengths``: tokens each row has so far, anchor included.
        """
        proposal = self._propose()
        tokens_BK = torch.cat([self.anchor_B[:, None], proposal.tokens_BP], dim=1)
        hidden_BKH, taps_BKTH = self.target_session.advance(tokens_BK, tree=proposal.tree)
        logits_BKV = self.engine.target.logits(hidden_BKH)
        verdict = self.engine.verifier.judge(logits_BKV, proposal, self.engine.sampling, self.uniforms, self.position_B)
        gained = self._sync(proposal, verdict)
        kept = [len(row.tokens) for row in gained]
        after = [length - 1 + count for length, count in zip(lengths, kept, strict=True)]
        counts_B = verdict.accepted_B + 1
        self._keep(tokens_BK, taps_BKTH, counts_B, lengths=after, path_BL=verdict.path_BL)
        self.anchor_B = verdict.bonus_B
        self.position_B = self.position_B + verdict.accepted_B + 1
        return gained

    def select(self, rows: Tensor, lengths: list[int]) -> None:
        """Keep only these rows of the batch. ``lengths``: tokens each of them has so far, anchor included."""
        held = [length - 1 for length in lengths]
        self.target_session.select(rows, lengths=held)
        if self.proposing is not None:
            self.proposing.select(rows, lengths=held)
        self.uniforms.select(rows)
        self.anchor_B, self.position_B = self.anchor_B[rows], self.position_B[rows]

    def join(self, other: Batch) -> None:
        """The rows of ``other``, which ends with that, come behind those here; no more than have left."""
        self.target_session.join(other.target_session)
        if self.proposing is not None and other.proposing is not None:
            self.proposing.join(other.proposing)
        self.uniforms.join(other.uniforms)
        self.anchor_B = torch.cat([self.anchor_B, other.anchor_B])
        self.position_B = torch.cat([self.position_B, other.position_B])

    def _propose(self) -> Proposal:
        engine, target = self.engine, self.engine.target
        if self.proposing is None:
            slots = Slots(torch.empty(len(self.anchor_B), 0, target.dims.vocab_size, device=target.device))
        else:
            slots = self.proposing.slots(self.anchor_B)
        return engine.verifier.propose(slots, engine.sampling, self.uniforms, self.position_B)

    def _keep(
        self,
        ids_BQ: Tensor,
        taps_BQTH: Tensor | None,
        counts_B: Tensor,
        *,
        lengths: Sequence[int],
        path_BL: Tensor | None = None,
    ) -> None:
        self.target_session.keep(counts_B, lengths=lengths, path_BL=path_BL)
        if self.proposing is None:
            return
        if path_BL is not None:
            ids_BQ = ids_BQ.gather(1, path_BL)
            if taps_BQTH is not None:
                taps_BQTH = taps_BQTH.gather(1, path_BL[..., None, None].expand(*path_BL.shape, *taps_BQTH.shape[2:]))
        self.proposing.extend(ids_BQ, taps_BQTH, counts_B, lengths=lengths)

    @staticmethod
    def _sync(proposal: Proposal, verdict: Verdict) -> list[Gained]:
        """The one host sync of a round: everything the host needs in one transfer."""
        tokens_BL = proposal.tokens_BP
        if verdict.path_BL is not None:
            tokens_BL = tokens_BL.gather(1, (verdict.path_BL[:, 1:] - 1).clamp_min(0))
        expected_B = torch.zeros_like(verdict.accepted_B)
        if proposal.expected_B is not None:
            expected_B = (proposal.expected_B * MILLIONTHS).long()
        head_B4 = torch.stack([verdict.accepted_B, verdict.bonus_B, expected_B], dim=1)
        num_nodes = proposal.tokens_BP.shape[1]
        asked = proposal.expected_B is not None
        return [
            Gained([*tokens[:accepted], bonus], num_nodes, expected / MILLIONTHS if asked else None)
            for accepted, bonus, expected, *tokens in torch.cat([head_B4, tokens_BL], dim=1).tolist()
        ]
