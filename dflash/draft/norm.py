"""RMSNorm at the precision of what it norms."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.RMSNorm):
    """Where masters are fp32 and states bf16, the weight is rounded like those of every product, as drafts are served:
    torch's fused kernel takes one dtype, and without it every step of the formula is kept in fp32 for the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
