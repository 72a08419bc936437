"""The objective: terms x weighting x named normaliser, over the vocabulary in chunks.

Stands at the end of the training flow: draft hidden states in, sums out. Numerator and denominator stay apart, so that
accumulation and ranks add sums before dividing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from dflash.argmax import argmax
from dflash.objective.chunks import sum_chunks
from dflash.objective.heads import HeadLoss, SlotHead, read
from dflash.objective.terms import Term
from dflash.objective.weights import Weighting
from dflash.types import AnchoredBlocks, LossTerms, TargetFeatures

NORMALISERS = ("weights", "tokens", "blocks", "sequences")
LABELS = ("data", "target")


class HasLogits(Protocol):
    """What an objective asks of the target; the embedding for heads only."""

    def logits(self, hidden: Tensor) -> Tensor: ...
    def embed(self, ids: Tensor) -> Tensor: ...


class Objective:
    """sum over slots of w * (sum over terms of coefficient * term), over a normaliser.

    terms: name -> (coefficient, term). labels: "data" (the token at anchor + k) or "target" (the target's argmax given
    the data before it; the two coincide on greedy text of the target). normalise: "weights" (sum of w: paper,
    SpecForge), "tokens" (slots that count: speculators), "blocks" (those with a slot that counts: what D-PACE's author
    asks for) or "sequences" (rows: D-PACE's own code). chunk_blocks: blocks whose logits are in memory at a time.
    heads: what a draft's head adds, where it has one.
    """

    def __init__(
        self,
        terms: Mapping[str, tuple[float, Term]],
        weighting: Weighting,
        *,
        labels: str = "data",
        normalise: str = "weights",
        chunk_blocks: int = 64,
        heads: HeadLoss | None = None,
    ):
        _check("objective.normalise", normalise, NORMALISERS)
        _check("objective.labels", labels, LABELS)
        if not terms:
            raise ValueError("objective.terms is empty; name at least one, such as cross_entropy")
        for name, (coefficient, _) in terms.items():
            if not isinstance(coefficient, (int, float)) or not math.isfinite(coefficient):
                raise ValueError(f"objective.terms.{name}=[{coefficient}, ...]: the coefficient must be a number")
        if chunk_blocks < 1:
            raise ValueError(f"objective.chunk_blocks={chunk_blocks}: must be at least 1")
        self.terms = dict(terms)
        self.weighting = weighting
        self.labels = labels
        self.normalise = normalise
        self.chunk_blocks = chunk_blocks
        self.heads = heads if heads is not None else HeadLoss()

    @property
    def needs_target(self) -> bool:
        """Whether the target's last hidden states are read (and lm_head is run on them)."""
        own = any(term.needs_target for _, term in self.terms.values())
        return own or self.labels == "target" or self.heads.needs_target

    def __call__(
        self,
        hidden_BAKH: Tensor,
        blocks: AnchoredBlocks,
        features: TargetFeatures,
        target: HasLogits,
        *,
        head: SlotHead | None = None,
        progress: float = 0.0,
    ) -> LossTerms:
        """Sums over every valid block; a batch without any gives zeros that still carry a gradient of zero.

        progress: fraction of the run that is over, for shares that change with it.
        """
        valid = blocks.valid_BA
        hidden_MPH = hidden_BAKH[valid][:, 1:].contiguous()  # one product with lm_head, not one a block
        labels_MP = blocks.labels_BAK[valid][:, 1:]
        previous_MP = blocks.labels_BAK[valid][:, :-1]  # slot 0 holds the anchor
        mask_MP = blocks.label_mask_BAK[valid][:, 1:]
        last_MPH = self._target_states(blocks, features)[valid] if self.needs_target else None

        def evaluate(chunk_MPH: Tensor, part: slice) -> Tensor:
            last = None if last_MPH is None else last_MPH[part]
            base = target.logits(chunk_MPH).float()
            target_logits = None if last is None else target.logits(last).float()
            labels = argmax(target_logits) if self.labels == "target" else labels_MP[part]
            if head is None:
                logits = base.log_softmax(-1)
                return self._sums(logits, self._own(logits, labels, target_logits), labels, mask_MP[part])
            reading = read(head, base, chunk_MPH, previous_MP[part], target.embed)
            own = partial(self._own, labels_MP=labels, target_MPV=target_logits)
            loss_MP = self.heads(own, base, reading, labels, target_logits, progress=progress)
            return self._sums(reading.logits_MPV, loss_MP, labels, mask_MP[part])

        parameters = () if head is None else tuple(p for p in head.parameters() if p.requires_grad)
        if len(hidden_MPH):
            total = sum_chunks(evaluate, hidden_MPH, chunk_blocks=self.chunk_blocks, parameters=parameters)
        else:  # the draft still takes part in backward: other ranks wait for its gradients
            nothing = sum(tensor.sum() * 0.0 for tensor in (hidden_BAKH, *parameters))
            total = nothing + hidden_BAKH.new_zeros(_NUM_SUMS, dtype=torch.float32)
        return self._named(total, num_rows=valid.any(1).sum())

    def _target_states(self, blocks: AnchoredBlocks, features: TargetFeatures) -> Tensor:
        """[B, A, K - 1, H]: the target's state before the token at anchor + k stands one token earlier."""
        before = blocks.index_BAK[..., :-1]
        B, A, P = before.shape
        H = features.last_BSH.shape[-1]
        gathered = features.last_BSH.gather(1, before.reshape(B, A * P, 1).expand(-1, -1, H))
        return gathered.view(B, A, P, H)

    def _own(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        """loss_MP of the terms. logits_MPV: log-probabilities, logits as good as any; one normalisation serves all."""
        return sum(coefficient * term(logits_MPV, labels_MP, target_MPV) for coefficient, term in self.terms.values())

    def _sums(self, logits: Tensor, loss: Tensor, labels_MP: Tensor, mask_MP: Tensor) -> Tensor:
        """The chunk's sums; logits: log-probabilities that decoding would choose by."""
        with torch.no_grad():
            confidence = logits.gather(-1, labels_MP[..., None])[..., 0].exp()
            hits = (argmax(logits) == labels_MP) & mask_MP
            weights = self.weighting(confidence, hits, mask_MP)
            prefix = hits.long().cumprod(-1)
        sums = (
            weights.sum(),
            mask_MP.sum(),
            hits.sum(),
            prefix.sum(),
            mask_MP[:, 0].sum(),
            (confidence * mask_MP).sum(),
        )
        numerator = (loss.masked_fill(~mask_MP, 0.0) * weights).sum()
        return torch.stack([numerator, *(s.to(logits.dtype) for s in sums)])

    def _named(self, total: Tensor, *, num_rows: Tensor) -> LossTerms:
        numerator = total[0]
        weights, tokens, hits, prefix, blocks, confidence = total[1:].detach()
        rows = num_rows.to(total.dtype)
        denominators = {"weights": weights, "tokens": tokens, "blocks": blocks, "sequences": rows}
        denominator = denominators[self.normalise]
        sums = {
            "loss": (numerator.detach(), denominator),
            "accuracy": (hits, tokens),
            "confidence": (confidence, tokens),
            # Teacher-forced at random anchors: not an acceptance length, which only real decoding has.
            "correct_prefix_tokens": (prefix, blocks),
        }
        return LossTerms(numerator, denominator, sums)


_NUM_SUMS = 7


def _check(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value!r}: choose one of {', '.join(allowed)}")
