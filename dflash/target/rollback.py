"""Whether the recurrent layers of a target can be rolled back: tried on a few tokens when it is wrapped, not looked up.

Some families of transformers forget the state when several tokens come at once, some keep it in a cache of their own;
decoded speculatively, both would be silently wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dflash.types import TokenBatch

if TYPE_CHECKING:
    from dflash.target.target import Target

MAX_ERROR = 0.1  # relative, of one module's output: rounding in bf16 stays far below, a forgotten state far above


@torch.no_grad()
def check_rollback(target: Target) -> None:
    """Raise ValueError that names the layer type if a recurrent layer cannot go on from a state, or go back to one."""
    plan = target.plan
    try:
        error_by_type = _errors(target)
    except Exception as error:  # whatever a module of some family makes of a cache that it does not know
        types = ", ".join(sorted({plan.types[i] for i in plan.recurrent}))
        raise ValueError(
            f"target {target.name}: layers of type {types} cannot run over a session's cache ({error}); choose another"
        ) from error
    wrong = [layer_type for layer_type, error in error_by_type.items() if not error <= MAX_ERROR]
    if wrong:
        raise ValueError(
            f"target {target.name}: layers of type {', '.join(wrong)} do not go on from a restored state; choose a "
            "target whose recurrent layers do"
        )


def _errors(target: Target) -> dict[str, float]:
    """By layer type, how far its first module is off behind two rejected tokens, relative to its largest output.

    Six tokens in two passes, the rejected ones between them, must give what one pass gives.
    """
    plan, device = target.plan, target.device
    ids_BS = torch.arange(1, 7, device=device)[None] % target.dims.vocab_size
    documents_BS = torch.zeros_like(ids_BS)
    batch = TokenBatch(ids_BS, documents_BS, torch.arange(6, device=device)[None], documents_BS == 0)
    session = target.open(1, capacity=8)
    session.advance(ids_BS[:, [0, 1, 0, 0]])
    session.keep(torch.tensor([2], device=device), longest=2)
    calls = session.recurrence.last.calls
    modules = {plan.types[i]: calls[i][0] for i in reversed(plan.recurrent)}
    with _Outputs(modules.values()) as outputs:
        session.advance(ids_BS[:, 2:])
        target.features(batch, (plan.recurrent[0],))
    return {layer_type: _relative(*outputs.of[module][-2:]) for layer_type, module in modules.items()}


def _relative(part: Tensor, whole: Tensor) -> float:
    """How far [1, 4, H] is off the end of [1, 6, H]."""
    return float((part - whole[:, 2:]).abs().max() / whole.abs().max())


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
