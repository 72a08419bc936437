"""Anchors and blocks: pure tensor functions from packed rows to training blocks (paper section 4.2).

Anchors are drawn anew for every batch, from a generator seeded by (seed, batch index); nothing is drawn from global
state, so resuming and evaluation leave them untouched.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dflash.types import AnchoredBlocks, TokenBatch


def seeded_generator(*key: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of ``key``: index before randomness."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def anchor_candidates(batch: TokenBatch) -> Tensor:
    """bool [B, S]: tokens that may be anchors: supervised, with a supervised next token of the same document, and
    with at least one token of context before them."""
    follows = batch.supervised_BS[:, 1:] & (batch.documents_BS[:, 1:] == batch.documents_BS[:, :-1])
    here = batch.supervised_BS[:, :-1] & (batch.positions_BS[:, :-1] > 0) & (batch.documents_BS[:, :-1] >= 0)
    return torch.nn.functional.pad(here & follows, (0, 1))


def random_anchors(batch: TokenBatch, *, block_size: int) -> Tensor:
    """conf ``anchors=random``: bool [B, S], every candidate (paper section 4.2): decoding may start a block at any."""
    return anchor_candidates(batch)


def chunk_anchors(batch: TokenBatch, *, block_size: int) -> Tensor:
    """conf ``anchors=chunks``: bool [B, S], every ``block_size``-th candidate from the first of each response on.

    The fixed chunks of block diffusion, which the paper holds random anchors against (5.64 against 4.94 tokens).
    """
    candidates_BS = anchor_candidates(batch)
    index_S = torch.arange(candidates_BS.shape[1], device=candidates_BS.device)
    # A document's first token is no candidate, so that every response's run of candidates has one before it.
    before_BS = index_S.expand_as(candidates_BS).masked_fill(candidates_BS, -1).cummax(1).values
    return candidates_BS & ((index_S - before_BS - 1) % block_size == 0)


def novel_anchors(batch: TokenBatch, *, block_size: int, ngram: int = 4, thinning: int = 4) -> Tensor:
    """conf ``anchors=novel``: bool [B, S], candidates behind which is news, and one in ``thinning`` of the others.

    Not news is an anchor that begins ``ngram`` tokens which stand in the same document before: text that repeats itself
    is soon learnt, and a decode passes it in few rounds of many tokens, so that it starts most blocks elsewhere.
    """
    candidates_BS = anchor_candidates(batch)
    repeated_BS = repeated_ngrams(batch, ngram=ngram)
    index_S = torch.arange(candidates_BS.shape[1], device=candidates_BS.device)
    return candidates_BS & (~repeated_BS | (index_S % thinning == 0))


def repeated_ngrams(batch: TokenBatch, *, ngram: int) -> Tensor:
    """bool [B, S]: tokens that begin an n-gram which their document has begun before; the last n - 1 begin none."""
    B, S = batch.ids_BS.shape
    number_BS = torch.arange(B, device=batch.ids_BS.device)[:, None] * (S + 1) + batch.documents_BS
    keys_BS, whole_BS = number_BS.clone(), torch.ones_like(batch.supervised_BS)
    for i in range(ngram):  # a polynomial in 64 bits, which may overflow: two n-grams hardly ever meet in one key
        keys_BS = keys_BS * 6364136223846793005 + batch.ids_BS.roll(-i, 1)
        whole_BS &= batch.documents_BS.roll(-i, 1) == batch.documents_BS
    whole_BS[:, max(0, S - ngram + 1) :] = False  # what has been rolled over the border
    keys_N, order_N = keys_BS.flatten().sort(stable=True)  # equal ones in the order of the text
    again_N = torch.nn.functional.pad(keys_N[1:] == keys_N[:-1], (1, 0))
    return torch.empty_like(again_N).scatter(0, order_N, again_N).view(B, S) & whole_BS


def draw_anchors(
    batch: TokenBatch, *, num_anchors: int, generator: torch.Generator, candidates_BS: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(anchors_BA, valid_BA): up to ``num_anchors`` distinct random candidates per row, ascending.

    candidates_BS: bool, tokens to choose among; all candidates by default. Rows with fewer of them have invalid entries
    (anchor 0) at the end. Drawn on the CPU, so that every device gets the same anchors.
    """
    candidates_BS = candidates_BS if candidates_BS is not None else anchor_candidates(batch)
    scores_BS = torch.rand(candidates_BS.shape, generator=generator).to(candidates_BS.device)
    scores_BS = scores_BS.masked_fill(~candidates_BS, -1.0)
    count = min(num_anchors, scores_BS.shape[1])
    top, index_BA = scores_BS.topk(count, dim=1)
    S = scores_BS.shape[1]
    index_BA = index_BA.masked_fill(top < 0, S).sort(dim=1).values
    valid_BA = index_BA < S
    return index_BA.masked_fill(~valid_BA, 0), valid_BA


def make_blocks(
    batch: TokenBatch, anchors_BA: Tensor, valid_BA: Tensor, *, block_size: int, mask_token_id: int
) -> AnchoredBlocks:
    """Blocks of K = ``block_size`` slots behind each anchor.

    The label mask is a cumulative product: a slot counts if it and every slot before it is in range, in the anchor's
    document and supervised. So short tails are kept, and no hole and no document border is trained across.
    """
    S = batch.ids_BS.shape[1]
    K = block_size
    slots_K = torch.arange(K, device=anchors_BA.device)
    index_BAK = anchors_BA[..., None] + slots_K
    in_range = index_BAK < S
    index_BAK = index_BAK.clamp(max=S - 1)
    flat = index_BAK.flatten(1)
    labels_BAK = batch.ids_BS.gather(1, flat).view_as(index_BAK)
    documents_BAK = batch.documents_BS.gather(1, flat).view_as(index_BAK)
    supervised_BAK = batch.supervised_BS.gather(1, flat).view_as(index_BAK)
    good = in_range & supervised_BAK & (documents_BAK == documents_BAK[..., :1])
    good[..., 0] = valid_BA  # the anchor is given, not predicted
    label_mask_BAK = good.long().cumprod(dim=-1).bool()
    label_mask_BAK[..., 0] = False
    input_ids_BAK = torch.full_like(labels_BAK, mask_token_id)
    input_ids_BAK[..., 0] = labels_BAK[..., 0]
    positions_BAK = batch.positions_BS.gather(1, anchors_BA)[..., None] + slots_K
    return AnchoredBlocks(anchors_BA, valid_BA, input_ids_BAK, index_BAK, positions_BAK, labels_BAK, label_mask_BAK)
