"""Other ways from the tapped states to the context than one linear map over all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dflash.draft.norm import Norm


class TapMixture(nn.Module):
    """A mixture of taps for each draft layer (DFlare, arXiv 2606.02091): softmax(weight[d]) over T taps, uniform at
    first. Stands in the place of ``fc``."""

    def __init__(self, depth: int, num_taps: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(depth, num_taps))

    def forward(self, taps: Tensor) -> Tensor:
        """[..., T*H] -> [..., depth, H]."""
        shares_LT = self.weight.softmax(-1)
        return shares_LT @ taps.unflatten(-1, (shares_LT.shape[1], -1))


class TapNorms(nn.ModuleList):
    """An RMSNorm for each tap, before they are joined (EAGLE-3.1): layers differ in scale, and long contexts drift."""

    def __init__(self, num_taps: int, hidden_size: int, *, eps: float):
        super().__init__(Norm(hidden_size, eps=eps) for _ in range(num_taps))

    def forward(self, taps: Tensor) -> Tensor:
        """[..., T, H] -> the same, each normed."""
        return torch.stack([norm(tap) for norm, tap in zip(self, taps.unbind(-2), strict=True)], dim=-2)
