"""Optimizers and learning-rate schedules, as factories that conf groups ``optimizer`` and ``schedule`` name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Lambda = Callable[[int], float]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for matrices and stacks of matrices, AdamW for everything else, in one optimizer.

    torch.optim.Muon takes two-dimensional weights only; the experts of a mixture are stacks [E, in, out], each of
    whose matrices is orthogonalised by itself here. The update is scaled to AdamW's RMS (Moonlight, 2502.16982), so
    one learning rate serves both.

    matrices, others: parameters of the two kinds (see ``split_matrices``).
    """

    def __init__(self, matrices, others, *, lr, momentum=0.95, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.1):
        groups = [
            {"params": list(matrices), "orthogonal": True, "momentum": momentum},
            {"params": list(others), "orthogonal": False, "betas": tuple(betas), "eps": eps},
        ]
        super().__init__([g for g in groups if g["params"]], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                update = self._orthogonal_update(p, group) if group["orthogonal"] else self._adam_update(p, group)
                if p.ndim >= 2:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"])
        return loss

    def _orthogonal_update(self, p: Tensor, group: dict) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - group["momentum"])
        nesterov = p.grad.lerp(buffer, group["momentum"])
        return orthogonalise(nesterov) * (0.2 * math.sqrt(max(p.shape[-2:])))

    def _adam_update(self, p: Tensor, group: dict) -> Tensor:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(p.grad.square(), 1 - beta2)
        mean = state["exp_avg"] / (1 - beta1 ** state["step"])
        scale = (state["exp_avg_sq"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        return mean / scale


def orthogonalise(matrix: Tensor, *, num_iterations: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: quintic Newton-Schulz on [..., rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.mT if matrix.shape[-2] > matrix.shape[-1] else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm  # sums inside the products spare passes over memory
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrix.shape[-2] > matrix.shape[-1] else x


def split_matrices(named: Iterable[tuple[str, nn.Parameter]]) -> tuple[list, list]:
    """(matrices, others): hidden weight matrices against embeddings, output heads, norms, biases and sinks."""
    matrices, others = [], []
    for name, p in named:
        if not p.requires_grad:
            continue
        is_table = "embed" in name or "lm_head" in name or "router" in name or name.endswith(("bias", "sinks"))
        (matrices if p.ndim >= 2 and not is_table else others).append(p)
    return matrices, others


def muon(module: nn.Module, *, lr: float = 4e-3, momentum: float = 0.95, weight_decay: float = 0.1) -> Muon:
    """conf ``optimizer=muon``: Muon for the module's matrices, AdamW for the rest."""
    return Muon(*split_matrices(module.named_parameters()), lr=lr, momentum=momentum, weight_decay=weight_decay)


def adamw(
    module: nn.Module,
    *,
    lr: float = 6e-4,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
) -> torch.optim.AdamW:
    """conf ``optimizer=adamw``: AdamW over the trainable parameters; decay on matrices only. Paper: lr 6e-4."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=tuple(betas))


def cosine(steps: int, *, warmup_fraction: float = 0.04, final: float = 0.0) -> Lambda:
    """Linear warm-up, then half a cosine down to ``final`` times the peak. Paper: warm-up 4 %."""
    warmup = max(1, round(steps * warmup_fraction))

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return scale


def wsd(steps: int, *, warmup_fraction: float = 0.04, decay_fraction: float = 0.3, final: float = 0.0) -> Lambda:
    """Warm-up, stable, decay: linear warm-up, a plateau, and a linear fall over the last ``decay_fraction``."""
    warmup = max(1, round(steps * warmup_fraction))
    decay = max(1, round(steps * decay_fraction))

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        left = max(0, steps - step)
        return 1.0 if left >= decay else final + (1 - final) * left / decay

    return scale
