"""Two-tap dynamic convolution along the slots of a block (DFlash 2): each slot also hears the one before it.

Around every attention and MLP sublayer: over its input and over its output. Depthwise, and the identity at first.

Letters: K slots, H hidden, G groups of channels that share a dynamic coefficient; "..." any leading axes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 2  # the slot itself, and the one before it
SIDES = 2  # a sublayer's input, and its output


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero, and draws no random number to get there."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Convolution(nn.Module):
    """y_t = k_{t,0} * x_t + k_{t,1} * x_{t-1} per channel; before a block's first slot stands nothing.

    A coefficient is the identity's (1, 0), plus a learned constant of its channel, plus a projection of the sublayer's
    input at this slot that ``group_size`` channels share. DFlash 2's base_kernel is 1 and 0 plus base_kernel_bias here,
    so that weight decay pulls towards the identity.
    """

    def __init__(self, hidden_size: int, *, group_size: int):
        super().__init__()
        self.group_size = group_size
        self.base_kernel_bias = nn.Parameter(torch.zeros(SIDES, TAPS, hidden_size))
        self.kernel_projection = ZeroLinear(hidden_size, SIDES * TAPS * (hidden_size // group_size), bias=False)

    def prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(a sublayer's input [..., K, H] convolved, what ``finish`` needs of it)."""
        dynamic = self.kernel_projection(x).unflatten(-1, (SIDES, TAPS, -1))
        return self._convolve(x, dynamic[..., 0, :, :], self.base_kernel_bias[0]), dynamic[..., 1, :, :]

    def finish(self, y: Tensor, dynamic: Tensor) -> Tensor:
        """The sublayer's output [..., K, H] convolved."""
        return self._convolve(y, dynamic, self.base_kernel_bias[1])

    def _convolve(self, x: Tensor, dynamic: Tensor, constant: Tensor) -> Tensor:
        kernel = dynamic.repeat_interleave(self.group_size, dim=-1) + constant  # [..., K, TAPS, H]
        before = F.pad(x, (0, 0, 1, -1))  # one slot on, the last dropped
        return x + kernel[..., 0, :] * x + kernel[..., 1, :] * before


class NoConvolution(nn.Module):
    """Every slot by itself."""

    def prepare(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None

    def finish(self, y: Tensor, _: None) -> Tensor:
        return y
