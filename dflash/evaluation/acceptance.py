"""Acceptance: what rounds of speculative decoding gained, as integer sums, and the chain walk that foretells it.

Acceptance length: tokens gained per round, bonus included, 1 .. K. Rounds cut by a stop token or by the length limit
count only the tokens really emitted. Pooled over rounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dflash.argmax import argmax
from dflash.blocks import make_blocks
from dflash.draft.draft import Draft
from dflash.draft.mask import block_geometry
from dflash.target.target import Target
from dflash.types import TargetFeatures, TokenBatch

CHUNK_BLOCKS = 128  # whose logits over the vocabulary are in memory at a time


@dataclass(frozen=True)
class AcceptanceStats:
    """Acceptance lengths of every round, prompt by prompt. block_size: the largest possible length."""

    lengths: tuple[tuple[int, ...], ...]
    block_size: int

    @property
    def pooled(self) -> np.ndarray:
        """All rounds of all prompts, [num_rounds] int."""
        return np.concatenate([np.asarray(row, dtype=np.int64) for row in self.lengths] or [np.zeros(0, np.int64)])

    def quantile(self, q: float) -> float:
        """A length that was really observed (inverted CDF), so that a median of 2 means what it says."""
        return float(np.quantile(self.pooled, q, method="inverted_cdf")) if len(self.pooled) else float("nan")

    @property
    def mean(self) -> float:
        """Tokens over rounds."""
        return float(self.pooled.mean()) if len(self.pooled) else float("nan")

    def mean_interval(self, *, num_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % percentile bootstrap over prompts of the pooled mean."""
        tokens = np.array([sum(row) for row in self.lengths], dtype=np.float64)
        rounds = np.array([len(row) for row in self.lengths], dtype=np.float64)
        return bootstrap_ratio(tokens, rounds, num_resamples=num_resamples, seed=seed)

    def to_dict(self) -> dict:
        """JSON-able: mean with interval, median, p90, histogram, prefix survival; [tokens, rounds] per prompt."""
        pooled = self.pooled
        histogram = Counter(pooled.tolist())
        prompt_means = [np.mean(row) for row in self.lengths if row]
        lengths = range(1, self.block_size + 1)
        return {
            "mean": self.mean,
            "mean_interval": list(self.mean_interval()),
            "median": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "mean_of_prompts": float(np.mean(prompt_means)) if prompt_means else float("nan"),
            "histogram": {str(n): histogram[n] for n in lengths if histogram[n]},
            "prefix_survival": [float((pooled >= n).mean()) if len(pooled) else float("nan") for n in lengths],
            "num_rounds": len(pooled),
            "num_tokens": int(pooled.sum()),
            "per_prompt": [[sum(row), len(row)] for row in self.lengths],
        }


def bootstrap_ratio(
    numerators: np.ndarray, denominators: np.ndarray, *, num_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of sum(numerators) / sum(denominators), resampling the pairs."""
    if len(numerators) == 0 or denominators.sum() == 0:
        return float("nan"), float("nan")
    picks = np.random.default_rng(seed).integers(0, len(numerators), (num_resamples, len(numerators)))
    below = denominators[picks].sum(1)
    ratios = numerators[picks].sum(1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


@torch.no_grad()
def chain_walk(
    target: Target,
    draft: Draft,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    block_size: int | None = None,
    chunk_anchors: int = 128,
) -> list[tuple[int, ...]]:
    """The acceptance lengths greedy speculative decoding would have, from one teacher-forced pass per batch.

    continuations: the target's own greedy output for each prompt. Every position is an anchor once; walking from the
    first generated token by p <- p + L[p] visits exactly the anchors real decoding visits. Exact for greedy only.
    """
    return walk_features(
        target, draft, *pack_continuations(target, draft, prompts, continuations),
        block_size=block_size, chunk_anchors=chunk_anchors,
    )  # fmt: skip


def pack_continuations(
    target: Target, draft: Draft, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> tuple[TokenBatch, TargetFeatures, list[int]]:
    """(batch, features, prompt lengths): one prompt with its continuation a row; draft-independent but for its taps,
    so it can be kept between evaluations."""
    rows = [[*prompt, *rest] for prompt, rest in zip(prompts, continuations, strict=True)]
    S = max(map(len, rows))
    ids = torch.zeros(len(rows), S, dtype=torch.long)
    documents = torch.full_like(ids, -1)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row)
        documents[b, : len(row)] = 0
    positions = torch.arange(S).expand_as(ids).contiguous()
    batch = TokenBatch(ids, documents, positions, documents == 0).to(target.device)
    return batch, target.features(batch, draft.shape.taps), [len(prompt) for prompt in prompts]


@torch.no_grad()
def walk_features(
    target: Target,
    draft: Draft,
    batch: TokenBatch,
    features: TargetFeatures,
    prompt_lengths: Sequence[int],
    *,
    block_size: int | None = None,
    chunk_anchors: int = 128,
) -> list[tuple[int, ...]]:
    """``chain_walk`` over features already taken."""
    K = block_size if block_size is not None else draft.shape.block_size
    device, S = target.device, batch.ids_BS.shape[1]
    firsts_B1 = torch.tensor(prompt_lengths, device=device)[:, None]
    counts = [length - first for length, first in zip(_lengths(batch), prompt_lengths, strict=True)]
    found = []
    for start in range(0, max(counts), chunk_anchors):
        behind_A = torch.arange(start, min(max(counts), start + chunk_anchors), device=device)
        anchors_BA = (firsts_B1 + behind_A).clamp_max(S - 1)  # a row's own continuation and no more
        found.append(_accepted(target, draft, batch, features, anchors_BA, block_size=K))
    return [_walk(row, count - 1) for row, count in zip(torch.cat(found, dim=1).tolist(), counts, strict=True)]


def _lengths(batch: TokenBatch) -> list[int]:
    """Tokens of each row's one document."""
    return (batch.documents_BS == 0).sum(1).tolist()


def _accepted(
    target: Target, draft: Draft, batch: TokenBatch, features: TargetFeatures, anchors_BA, *, block_size: int
):
    """long [B, A]: how many leading slots of the block at each anchor the draft gets right."""
    valid_BA = batch.documents_BS.gather(1, anchors_BA) == 0
    blocks = make_blocks(batch, anchors_BA, valid_BA, block_size=block_size, mask_token_id=draft.shape.mask_token_id)
    # forward and not a call: evaluation computes as decoding does, also where training is compiled
    hidden = draft.forward(target.embed(draft.inputs(blocks)), features.taps_BSTH, block_geometry(batch, blocks))
    hidden = hidden[:, :, 1:]
    # A head and a draft that goes left to right are given the data's tokens: up to the first miss, and no further
    # counts, they are the draft's own.
    previous_BAP = blocks.labels_BAK[..., :-1]
    parts = zip(*(x.flatten(0, 1).split(CHUNK_BLOCKS) for x in (hidden, previous_BAP)), strict=True)
    guesses_BAP = torch.cat([_guesses(target, draft, *part) for part in parts]).view_as(previous_BAP)
    hits = (guesses_BAP == blocks.labels_BAK[..., 1:]) & blocks.label_mask_BAK[..., 1:]
    return hits.long().cumprod(-1).sum(-1)


def _guesses(target: Target, draft: Draft, hidden_MPH: Tensor, previous_MP: Tensor) -> Tensor:
    """long [M, P]: the likeliest token of each slot of M blocks."""
    logits_MPV = target.logits(hidden_MPH.to(target.dtype))
    return argmax(draft.correct(logits_MPV, hidden_MPH, previous_MP, target.embed))


def _walk(accepted: list[int], count: int) -> tuple[int, ...]:
    """Lengths of the rounds over ``count`` tokens behind the first generated one; the final round is cut there.

    accepted: of the blocks at the first generated token and at those behind it.
    """
    lengths, p = [], 0
    while p < count:
        lengths.append(min(accepted[p] + 1, count - p))
        p += lengths[-1]
    return tuple(lengths)


def repeated_ngram_share(sequences: Sequence[Sequence[int]], *, n: int = 4) -> float:
    """Share of n-grams that already occurred earlier in their own sequence: loops, not skill, when it is high."""
    total = repeated = 0
    for tokens in sequences:
        seen: set[tuple[int, ...]] = set()
        for i in range(len(tokens) - n + 1):
            gram = tuple(tokens[i : i + n])
            repeated += gram in seen
            seen.add(gram)
            total += 1
    return repeated / total if total else 0.0
