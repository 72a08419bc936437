"""What a draft's head adds to the loss: its own terms, and how the others divide between logits with and without it.

Stands inside the objective's chunks. An objective knows of a head only what ``SlotHead`` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Embed = Callable[[Tensor], Tensor]


class SlotHead(Protocol):
    """A head as ``draft.heads.head`` has it. Letters: M blocks, P slots, G size of its memory, V vocabulary."""

    def read(self, previous_MP: Tensor, embed: Embed) -> Tensor: ...
    def correct(self, logits: Tensor, hidden: Tensor, memory: Tensor) -> Tensor: ...
    def confidence(self, hidden: Tensor, memory: Tensor) -> Tensor | None: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Reading:
    """A head over one chunk of blocks, given the data's tokens. logits_MPV: log-probabilities with its correction."""

    head: SlotHead
    hidden_MPH: Tensor
    memory_MPG: Tensor
    logits_MPV: Tensor


def read(head: SlotHead, base_MPV: Tensor, hidden_MPH: Tensor, previous_MP: Tensor, embed: Embed) -> Reading:
    """base_MPV: the draft's logits without the head. previous_MP: long, the token before each slot."""
    memory_MPG = head.read(previous_MP, embed)
    logits_MPV = head.correct(base_MPV, hidden_MPH, memory_MPG).log_softmax(-1)
    return Reading(head, hidden_MPH, memory_MPG, logits_MPV)


class HeadTerm(Protocol):
    """Per-slot loss of a head. ``needs_target``: whether it reads the target's logits."""

    needs_target: bool

    def __call__(self, reading: Reading, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        """-> loss_MP, 0 where it does not apply."""
        ...


class Candidates:
    """Cross entropy over a selector's candidates (DFlash 2), nats; 0 where the label is none of them."""

    needs_target = False

    def __call__(self, reading: Reading, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        chosen_MP = reading.logits_MPV.gather(-1, labels_MP[..., None])[..., 0]
        return torch.where(chosen_MP.isinf(), 0.0, -chosen_MP)


class Confidence:
    """Binary cross entropy of the confidence head with 1 - 0.5 * ||p_draft - p_target||_1 (DSpark), nats.

    That is the probability that rejection sampling accepts the slot's proposal at temperature 1. Raises ValueError for
    a head that has no confidence.
    """

    needs_target = True

    def __call__(self, reading: Reading, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        told_MP = reading.head.confidence(reading.hidden_MPH, reading.memory_MPG)
        if told_MP is None:
            raise ValueError("objective.heads.terms.confidence: this head has no confidence; set heads=dspark")
        with torch.no_grad():
            apart_MPV = reading.logits_MPV.exp() - target_MPV.softmax(-1)
            wanted_MP = (1 - 0.5 * apart_MPV.abs().sum(-1)).clamp(0, 1)
        return F.binary_cross_entropy_with_logits(told_MP, wanted_MP, reduction="none")


class HeadLoss:
    """terms: name -> (coefficient, head term), added to the objective's own.

    base_share: [first, last], the share of the objective's own terms that is taken on the logits without the head's
    correction, in a straight line from the first step to the last; the rest is on those with it. [0, 0] for a head
    that is trained with the draft as one, [1, 0] as Domino does, [1, 1] for a head that has a term of its own alone.
    """

    def __init__(
        self, terms: Mapping[str, tuple[float, HeadTerm]] | None = None, *, base_share: Sequence[float] = (0.0, 0.0)
    ):
        if len(base_share) != 2 or not all(0 <= share <= 1 for share in base_share):
            raise ValueError(
                f"objective.heads.base_share={list(base_share)}: give the first and the last share, each between 0 and "
                "1, such as [0, 0]"
            )
        self.terms = dict(terms or {})
        self.base_share = tuple(base_share)

    @property
    def needs_target(self) -> bool:
        return any(term.needs_target for _, term in self.terms.values())

    def share_at(self, progress: float) -> float:
        """The share without the head, at this fraction of the run."""
        first, last = self.base_share
        return first + (last - first) * min(1.0, max(0.0, progress))

    def __call__(
        self,
        own: Callable[[Tensor], Tensor],
        base_MPV: Tensor,
        reading: Reading,
        labels_MP: Tensor,
        target_MPV: Tensor | None,
        *,
        progress: float,
    ) -> Tensor:
        """loss_MP. own: the objective's terms as a function of log-probabilities. base_MPV: logits."""
        share = self.share_at(progress)
        parts = [c * term(reading, labels_MP, target_MPV) for c, term in self.terms.values()]
        if share < 1:
            parts.append((1 - share) * own(reading.logits_MPV))
        if share > 0:
            parts.append(share * own(base_MPV.log_softmax(-1)))
        return sum(parts)
