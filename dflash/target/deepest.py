"""A pass that ends at the deepest tap: the layers behind it, the final norm and lm_head are not run.

A draft reads tapped layers only, so features cost no more than those. Stands inside ``Target.features``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def run_to_deepest(run: Callable[..., object], blocks: Sequence[nn.Module], taps: tuple[int, ...]) -> Tensor:
    """The outputs of layers ``taps`` in ``run(taps=())``, stacked: [B, S, T, H].

    The layers' own outputs, which are the hidden states transformers would return: of layer i, entry i + 1.
    """
    states: dict[int, Tensor] = {}

    def keep(tap: int):
        def hook(module: nn.Module, args: tuple, output) -> None:
            states[tap] = output if isinstance(output, Tensor) else output[0]
            if tap == max(taps):
                raise _Deepest

        return hook

    handles = [blocks[tap].register_forward_hook(keep(tap)) for tap in set(taps)]
    try:
        run(taps=())
    except _Deepest:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([states[tap] for tap in taps], dim=2)


class _Deepest(Exception):
    """The deepest tap has been seen."""
