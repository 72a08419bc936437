"""The Markov head of DSpark (arXiv 2607.05147): a low-rank bias by the token before the slot, and its confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dflash.draft.heads.head import Embed, Head

if TYPE_CHECKING:
    from dflash.draft.heads.shapes import MarkovShape


class MarkovHead(Head):
    """logits_k + W1[x_{k-1}] W2; confidence sigmoid(w . [h_k ; W1[x_{k-1}]]). W2 and w start at zero.

    It remembers W1 of the one token before the slot, so G is the rank.
    """

    def __init__(self, shape: MarkovShape):
        super().__init__()
        self.embed = nn.Embedding(shape.vocab_size, shape.rank)  # W1
        self.lm_head = nn.Linear(shape.rank, shape.vocab_size, bias=False)  # W2
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.zeros_(self.lm_head.weight)
        self.confidence_proj = nn.Linear(shape.hidden_size + shape.rank, 1) if shape.confident else None
        if self.confidence_proj is not None:
            nn.init.zeros_(self.confidence_proj.weight)
            nn.init.zeros_(self.confidence_proj.bias)

    def read(self, previous_MP: Tensor, embed: Embed) -> Tensor:
        return self.embed(previous_MP)

    def follow(self, memory: Tensor | None, previous: Tensor, embed: Embed) -> Tensor:
        return self.embed(previous)

    def correct(self, logits: Tensor, hidden: Tensor, memory: Tensor) -> Tensor:
        return logits.float() + self.lm_head(memory).float()

    def confidence(self, hidden: Tensor, memory: Tensor) -> Tensor | None:
        if self.confidence_proj is None:
            return None
        return self.confidence_proj(torch.cat([hidden.to(memory.dtype), memory], dim=-1)).float()[..., 0]
