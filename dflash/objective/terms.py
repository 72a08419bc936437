"""Loss terms: one number per slot from the draft's log-probabilities, the label and, if asked, the target's logits.

Letters: M blocks, P = K - 1 predicted slots, V vocabulary. Slots that count are a prefix of every block (the label mask
is cumulative), so terms that look along the block need no mask: what does not count comes behind and is masked later.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vecdot

from dflash.argmax import argmax


class Term(Protocol):
    """Per-slot loss. ``needs_target``: whether it reads the target's logits.

    logits_MPV: the draft's log-probabilities, normalised once for all terms (logits as good as any others).
    """

    needs_target: bool

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        """-> loss_MP."""
        ...


class CrossEntropy:
    """-log p_draft(label), nats. The label is the data token or the target's argmax: ``objective.labels``."""

    needs_target = False

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        return -logits_MPV.gather(-1, labels_MP[..., None])[..., 0]


class ForwardKL:
    """KL(p_target || p_draft) at ``temperature``, nats, times temperature squared (Hinton et al., 2015)."""

    needs_target = True

    def __init__(self, *, temperature: float = 1.0):
        self.temperature = _above_zero("forward_kl", temperature)

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        draft, target = _at(self.temperature, logits_MPV, target_MPV)
        probabilities = target.exp()
        # As two products, which pass over the vocabulary less often than the difference would; autocast would take them
        # in half precision, in which two like numbers have no difference.
        with torch.autocast(draft.device.type, enabled=False):
            return (vecdot(probabilities, target) - vecdot(probabilities, draft)) * self.temperature**2


class ReverseKL:
    """KL(p_draft || p_target) at ``temperature``, nats, times temperature squared: it seeks one mode of the target."""

    needs_target = True

    def __init__(self, *, temperature: float = 1.0):
        self.temperature = _above_zero("reverse_kl", temperature)

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        draft, target = _at(self.temperature, logits_MPV, target_MPV)
        return F.kl_div(target, draft, log_target=True, reduction="none").sum(-1) * self.temperature**2


class TotalVariation:
    """Half of ||p_draft - p_target||_1 at ``temperature``, 0..1: the chance that rejection sampling rejects the slot.

    The L1 loss of DSpark (arXiv 2607.05147) is twice this, the same class with twice the coefficient.
    """

    needs_target = True

    def __init__(self, *, temperature: float = 1.0):
        self.temperature = _above_zero("total_variation", temperature)

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        draft = (logits_MPV / self.temperature).softmax(-1)
        target = (target_MPV / self.temperature).softmax(-1)
        return (draft - target).abs().sum(-1) / 2


class FirstError:
    """-log p_draft(label) in the first slot whose argmax is wrong, 0 in all others (arXiv 2606.11552, focal loss).

    That slot ends the accepted prefix. Beside cross entropy its coefficient (0.3 in the paper) is what the slot weighs
    more; a block without a wrong slot adds nothing.
    """

    needs_target = False

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        wrong_MP = argmax(logits_MPV) != labels_MP
        first_MP = wrong_MP & (wrong_MP.long().cumsum(-1) == 1)
        return CrossEntropy()(logits_MPV, labels_MP, target_MPV).masked_fill(~first_MP, 0.0)


class ExpectedLength:
    """1 - q_1 q_2 ... q_k in slot k, with q_j = p_draft(label j): the chain surrogate (arXiv 2606.11552).

    Over a block it sums to P minus the expected number of accepted proposals, were slots independent. Its gradient is
    that of cross entropy under D-PACE weights at alpha = 0: it vanishes where the first slots are still improbable, so
    it goes beside cross entropy. The weighting multiplies it like any term: ``uniform`` keeps the sum above.
    """

    needs_target = False

    def __call__(self, logits_MPV: Tensor, labels_MP: Tensor, target_MPV: Tensor | None) -> Tensor:
        nats_MP = CrossEntropy()(logits_MPV, labels_MP, target_MPV)
        return -(-nats_MP.cumsum(-1)).expm1()


def _at(temperature: float, logits_MPV: Tensor, target_MPV: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of draft and target at ``temperature``; at 1 the draft's are given."""
    draft = logits_MPV if temperature == 1 else (logits_MPV / temperature).log_softmax(-1)
    return draft, (target_MPV if temperature == 1 else target_MPV / temperature).log_softmax(-1)


def _above_zero(name: str, temperature: float) -> float:
    if temperature <= 0:
        raise ValueError(f"objective.terms.{name}.temperature={temperature}: must be above 0; try 1.0")
    return temperature
