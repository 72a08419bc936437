"""Loss terms: one number per slot from the draft's logits, the label and, if asked for, the target's logits."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Term(Protocol):
    """Per-slot loss in nats. ``needs_target``: whether it reads the target's logits."""

    needs_target: bool

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        """-> loss_MP."""
        ...


class CrossEntropy:
    """-log p_draft(label)."""

    needs_target = False

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        return F.cross_entropy(logits_MPV.flatten(0, 1), labels_MP.flatten(), reduction="none").view_as(labels_MP)


class ForwardKL:
    """KL(p_target || p_draft) at ``temperature``, times temperature squared (Hinton et al., 2015)."""

    needs_target = True

    def __init__(self, *, temperature: float = 1.0):
        if temperature <= 0:
            raise ValueError(f"objective.terms.forward_kl.temperature={temperature}: must be above 0")
        self.temperature = temperature

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        draft = (logits_MPV / self.temperature).log_softmax(-1)
        target = (target_MPV / self.temperature).log_softmax(-1)
        return (target.exp() * (target - draft)).sum(-1) * self.temperature**2
