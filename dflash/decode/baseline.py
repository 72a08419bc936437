"""The baseline: the target's own autoregressive loop with a key-value cache, over the same sessions as the decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dflash.decode.generate import Decoder
from dflash.decode.rows import Gained, last_valid
from dflash.decode.run import Opening
from dflash.decode.sampling import Sampling, Uniforms
from dflash.target.target import Target


class AutoregressiveDecoder(Decoder):
    """One token per target pass and row; finished rows leave the batch."""

    def __init__(self, target: Target, *, sampling: Sampling | None = None):
        self.target = target
        self.sampling = sampling if sampling is not None else Sampling()

    def opener(self, *, most_rows: int, max_new_tokens: int) -> Callable[[Opening], _Loop]:
        return lambda opening: _Loop(self.target, self.sampling, opening, max_new_tokens=max_new_tokens)


class _Loop:
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

    def join(self, other: _Loop) -> None:
        self.session.join(other.session)
        self.uniforms.join(other.uniforms)
        self.anchor_B = torch.cat([self.anchor_B, other.anchor_B])
        self.position_B = torch.cat([self.position_B, other.position_B])

    def _choose(self, hidden_BH: Tensor) -> Tensor:
        numbers = self.uniforms.at("target", self.position_B, 1)
        return self.sampling.choose(self.target.logits(hidden_BH), None if numbers is None else numbers[:, 0])
