"""The GRU correction of Domino (arXiv 2605.29707): a recurrent summary of all tokens of the block before the slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dflash.draft.heads.head import Embed, Head

if TYPE_CHECKING:
    from dflash.draft.heads.shapes import GruShape


class GruHead(Head):
    """logits_k + W_v SiLU(W [h_k ; g_k]), g_k a GRU's state behind the anchor and the tokens up to slot k - 1.

    No biases; W_v starts at zero. Domino leaves the first slot alone; here it is corrected as the others are. The GRU
    reads the target's embeddings, so G is its state size.
    """

    def __init__(self, shape: GruShape):
        super().__init__()
        self.gru = nn.GRU(shape.hidden_size, shape.state_size, bias=False, batch_first=True)
        self.rank_proj = nn.Linear(shape.hidden_size + shape.state_size, shape.rank, bias=False)  # W
        self.lm_head = nn.Linear(shape.rank, shape.vocab_size, bias=False)  # W_v
        nn.init.normal_(self.rank_proj.weight, std=0.02)
        nn.init.zeros_(self.lm_head.weight)

    def read(self, previous_MP: Tensor, embed: Embed) -> Tensor:
        return self.gru(self._inputs(previous_MP, embed))[0]

    def follow(self, memory: Tensor | None, previous: Tensor, embed: Embed) -> Tensor:
        inputs = self._inputs(previous, embed).reshape(-1, 1, self.gru.input_size)
        state = None if memory is None else memory.reshape(1, -1, self.gru.hidden_size)
        return self.gru(inputs, state)[0].view(*previous.shape, self.gru.hidden_size)

    def correct(self, logits: Tensor, hidden: Tensor, memory: Tensor) -> Tensor:
        mixed = self.rank_proj(torch.cat([hidden.to(memory.dtype), memory], dim=-1))
        return logits.float() + self.lm_head(F.silu(mixed)).float()

    def _inputs(self, previous: Tensor, embed: Embed) -> Tensor:
        return embed(previous).to(self.rank_proj.weight.dtype)
