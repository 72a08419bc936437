"""Whether the recurrent layers of a target can be rolled back: tried on a few tokens when it is wrapped, not looked up.

Some families of transformers forget the state when several tokens come at once, some keep it in a cache of their own;
decoded speculatively, both would be silently wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dflash.target.layers import fresh_states
from dflash.types import TokenBatch

if TYPE_CHECKING:
    from dflash.target.target import Target

MAX_SHARE = 0.05  # of what the state changes in a module's output; a module that forgets a part of it is above
MAX_ROUNDINGS = 4  # of a half precision at the largest output: two right ways of computing it may differ by that,
MIN_ROUNDING = 1e-5  # or, in fp32, by this


@torch.no_grad()
def check_rollback(target: Target) -> None:
    """Raise ValueError that names the layer type if a recurrent layer cannot go on from a state, or go back to one."""
    plan = target.plan
    try:
        wrong = _forgetful(target)
    except Exception as error:  # whatever a module of some family makes of a cache that it does not know
        types = ", ".join(sorted({plan.types[i] for i in plan.recurrent}))
        raise ValueError(
            f"target {target.name}: layers of type {types} cannot run over a session's cache ({error}); choose another"
        ) from error
    if wrong:
        raise ValueError(
            f"target {target.name}: layers of type {', '.join(wrong)} do not go on from a restored state; choose a "
            "target whose recurrent layers do"
        )


def _forgetful(target: Target) -> list[str]:
    """The layer types whose first module puts out something else behind two rejected tokens than in one pass.

    Twelve tokens in two passes, the rejected ones between them. How much the state matters is what the module puts out
    without one; behind the reach of a convolution only a recurrent state is left to matter.
    """
    plan, device = target.plan, target.device
    first = {plan.types[i]: i for i in reversed(plan.recurrent)}
    ids_BS = torch.arange(1, 13, device=device)[None] % target.dims.vocab_size
    documents_BS = torch.zeros_like(ids_BS)
    batch = TokenBatch(ids_BS, documents_BS, torch.arange(12, device=device)[None], documents_BS == 0)
    session = target.open(1, capacity=12)
    session.advance(ids_BS[:, [0, 1, 2, 3, 0, 0]])
    session.keep(torch.tensor([4], device=device), lengths=[4])
    calls = session.recurrence.last.calls
    with _Outputs(calls[i][0] for i in first.values()) as outputs:
        session.advance(ids_BS[:, 4:])
        target.features(batch, (0,))
        for i in first.values():
            session.cache.layers[i] = fresh_states(target.config, (i,))[i]
            module, args, kwargs = session.recurrence.last.calls[i]
            module(*args, **kwargs)
    return [layer_type for layer_type, i in first.items() if _differs(*outputs.of[calls[i][0]][-3:])]


def _differs(restored: Tensor, whole: Tensor, without: Tensor) -> bool:
    """Of [1, 8, H], [1, 12, H] and [1, 8, H], token by token."""
    right = whole[:, 4:]
    error_Q, effect_Q = ((output - right).abs().amax((0, 2)) for output in (restored, without))
    rounding = max(MAX_ROUNDINGS * torch.finfo(whole.dtype).eps, MIN_ROUNDING) * whole.abs().max()
    return not bool((error_Q <= torch.maximum(MAX_SHARE * effect_Q, rounding)).all())


class _Outputs:
    """What these modules put out, call by call, while it is open."""

    def __init__(self, modules):
        self.of: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}

    def __enter__(self) -> _Outputs:
        self.handles = [module.register_forward_hook(self._note) for module in self.of]
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()

    def _note(self, module: nn.Module, _, output) -> None:
        self.of[module].append(output[0] if isinstance(output, tuple) else output)
