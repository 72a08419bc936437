"""FSDP2: the draft's weights, gradients and optimizer states in shards, one a rank (Lightning's ModelParallelStrategy).

Each layer is one unit, gathered when it is run and given back behind it; what is left (fc, norms, a head) is the
root's. The frozen target is no part of it: every rank holds its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from dflash.draft.draft import Draft


def shard(draft: Draft, mesh: DeviceMesh) -> None:
    """Shard ``draft`` over ``mesh`` in place; the parameters keep their names and become DTensors."""
    for layer in draft.layers:
        fully_shard(layer, mesh=mesh)
        register_fsdp_forward_method(layer, "over_context")
    fully_shard(draft, mesh=mesh)


def is_sharded(draft: Draft) -> bool:
    """Whether ``shard`` has been here."""
    return isinstance(draft, FSDPModule)


@torch.no_grad()
def gathered(draft: Draft) -> Draft:
    """``draft``, or a whole copy of a sharded one, in eval mode and for this rank alone.

    Every rank must call it. Decoding sessions use the layers one by one and need whole weights.
    """
    if not is_sharded(draft):
        return draft
    copy = Draft(draft.shape, attention=draft.attention)
    copy.load_state_dict({name: whole(value) for name, value in draft.state_dict().items()})
    return copy.to(draft.fc.weight.device).eval()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may lie in shards: a collective call where it does."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
