"""The path selector of DFlash 2: rescoring each slot's likeliest tokens by the token chosen before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dflash.argmax import argmax
from dflash.draft.heads.head import Embed, Head

if TYPE_CHECKING:
    from dflash.draft.heads.shapes import SelectorShape


class SelectorHead(Head):
    """S_k(a, b) = U_k(b) + <A[a] * (W h_k), B[b]> over the top_k tokens b of slot k's logits U_k; a is x_{k-1}.

    All other tokens get -inf. B starts at zero. A is the predecessors' codebook, B the successors'; G is the rank.
    """

    def __init__(self, shape: SelectorShape):
        super().__init__()
        self.top_k = shape.top_k
        self.embed_predecessor = nn.Embedding(shape.vocab_size, shape.rank)  # A
        self.embed_successor = nn.Embedding(shape.vocab_size, shape.rank)  # B
        self.hidden_projection = nn.Linear(shape.hidden_size, shape.rank, bias=False)  # W
        nn.init.normal_(self.embed_predecessor.weight, std=1.0)  # it multiplies W h; nothing else gives it a scale
        nn.init.zeros_(self.embed_successor.weight)
        nn.init.normal_(self.hidden_projection.weight, std=0.02)

    def read(self, previous_MP: Tensor, embed: Embed) -> Tensor:
        return self.embed_predecessor(previous_MP)

    def follow(self, memory: Tensor | None, previous: Tensor, embed: Embed) -> Tensor:
        return self.embed_predecessor(previous)

    def correct(self, logits: Tensor, hidden: Tensor, memory: Tensor) -> Tensor:
        unary, ids = logits.float().topk(self.top_k, dim=-1)
        context = memory * self.hidden_projection(hidden.to(memory.dtype))
        scores = unary + (self.embed_successor(ids) @ context[..., None]).float()[..., 0]
        return torch.full_like(logits, float("-inf"), dtype=torch.float32).scatter(-1, ids, scores)

    def greedy_walk(self, logits_BDV: Tensor, hidden_BDH: Tensor, anchor_B: Tensor) -> tuple[Tensor, Tensor]:
        """All pairs of neighbouring candidates at once, then from each chosen one to its best successor."""
        unary_BDC, ids_BDC = logits_BDV.float().topk(self.top_k, dim=-1)
        anchors_B1C = anchor_B[:, None, None].expand(-1, 1, self.top_k)
        before_BDC = torch.cat([anchors_B1C, ids_BDC[:, :-1]], dim=1)
        context_BDCR = self.embed_predecessor(before_BDC) * self.hidden_projection(hidden_BDH)[:, :, None]
        # [b, d, p, c]: candidate c of slot d behind candidate p of the slot before
        scores = unary_BDC[:, :, None] + (context_BDCR @ self.embed_successor(ids_BDC).mT).float()
        best_BDC = argmax(scores)
        chosen = [torch.zeros_like(anchor_B)[:, None]]
        for slot in range(logits_BDV.shape[1]):
            chosen.append(best_BDC[:, slot].gather(1, chosen[-1]))
        chosen_BD, before_BD = torch.cat(chosen[1:], dim=1), torch.cat(chosen[:-1], dim=1)
        of_chosen = before_BD[..., None, None].expand(-1, -1, 1, self.top_k)
        return ids_BDC.gather(2, chosen_BD[..., None])[..., 0], scores.gather(2, of_chosen)[:, :, 0]
