"""Two steps of training without weights or data: the real module on fake tensors, every byte and product counted.

The second step is the one that counts: by then the optimizer has its state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dflash.draft.attention import Flex
from dflash.plan.flash import UnwrittenScores, rehearse_rows
from dflash.plan.ledger import Ledger, Phase, Rates
from dflash.target.flex import FLEX
from dflash.target.quantized import packed_savings
from dflash.target.target import Target
from dflash.training.module import DistillationModule
from dflash.types import TokenBatch

TARGET, DRAFT, OBJECTIVE, BACKWARD, OPTIMIZER = "target", "draft", "objective", "backward", "optimizer"


@dataclass(frozen=True)
class Rehearsal:
    """What two steps held and did, in bytes, numbers of parameters, FLOPs and seconds.

    step: the phases of one optimizer step. feature_bytes: the target's features of one micro-batch. accumulated_bytes:
    gradients that wait, during a forward pass, for the other micro-batches of their step.
    """

    num_target_parameters: int
    num_draft_parameters: int
    target_bytes: int
    draft_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    feature_bytes: int
    step: dict[str, Phase]
    num_micro_batches: int

    @property
    def static_bytes(self) -> int:
        """Alive in the whole step: weights and optimizer state."""
        return self.target_bytes + self.draft_bytes + self.optimizer_bytes

    @property
    def peak_bytes(self) -> int:
        return max(phase.peak_bytes for phase in self.step.values())

    @property
    def peak_phase(self) -> str:
        return max(self.step, key=lambda name: self.step[name].peak_bytes)


def rehearse(
    outline: Callable[[AbstractContextManager], Target],
    make_module: Callable[[Target], DistillationModule],
    *,
    length: int,
    batch_size: int,
    rates: Rates,
    autocast: torch.dtype | None = None,
) -> Rehearsal:
    """Rehearse ``make_module(outline(fake))`` on batches of ``batch_size`` rows of ``length`` tokens.

    autocast: the dtype that the draft computes in, None for that of its weights. Of accumulated micro-batches at most
    two are rehearsed: the others are as the second.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # a second of imports that only a plan pays

    ledger, fake = Ledger(rates), FakeTensorMode()
    with fake, ledger:
        target = outline(fake)
        ledger.live_bytes -= packed_savings(target)
        target_bytes = ledger.live_bytes
        if target.config._attn_implementation == FLEX:
            rehearse_rows(target, ledger)
        module = make_module(target)
        draft_bytes = ledger.live_bytes - target_bytes
        if isinstance(module.draft.attention, Flex):
            module.draft.attention = UnwrittenScores(ledger)
        batch = _batch(batch_size, length)
        optimizer = module.make_optimizer(module.draft)
        count = min(2, module.accumulate)
        with _draft_apart(module.draft, ledger):
            for _ in range(2):
                ledger.phases.clear()
                for k in range(count):
                    feature_bytes = _micro_batch(module, k, batch, ledger, autocast)
                gradient_bytes = sum(p.grad.nbytes for p in module.draft.parameters() if p.grad is not None)
                _update(module, optimizer, ledger)
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    return Rehearsal(
        num_target_parameters=target.num_parameters,
        num_draft_parameters=module.draft.num_parameters,
        target_bytes=target_bytes,
        draft_bytes=draft_bytes,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=sum(value.nbytes for value in state),
        feature_bytes=feature_bytes,
        step=_of_a_step(ledger.phases, module.accumulate / count),
        num_micro_batches=module.accumulate,
    )


def _micro_batch(
    module: DistillationModule, k: int, batch: TokenBatch, ledger: Ledger, autocast: torch.dtype | None
) -> int:
    """As ``DistillationModule.training_step``; the bytes of the features."""
    with torch.autocast("cpu", dtype=autocast) if autocast is not None else nullcontext():
        with ledger.phase(TARGET):
            features = module.target.features(batch, module.draft.shape.taps, with_last=module.objective.needs_target)
        with ledger.phase(OBJECTIVE):
            terms = module.loss_terms(k, batch, features)
    with ledger.phase(BACKWARD):
        terms.numerator.backward()
    return sum(part.nbytes for part in (features.taps_BSTH, features.last_BSH) if part is not None)


def _update(module: DistillationModule, optimizer: torch.optim.Optimizer, ledger: Ledger) -> None:
    with ledger.phase(OPTIMIZER):
        nn.utils.clip_grad_norm_(module.draft.parameters(), module.clip if module.clip else float("inf"))
        optimizer.step()
        optimizer.zero_grad()


@contextmanager
def _draft_apart(draft: nn.Module, ledger: Ledger) -> Iterator[None]:
    """Count the draft's forward pass, which is called inside the objective's phase, as a phase of its own."""
    phases = []

    def enter(*_) -> None:
        phases.append(ledger.phase(DRAFT))
        phases[-1].__enter__()

    def leave(*_) -> None:
        phases.pop().__exit__(None, None, None)

    hooks = [draft.register_forward_pre_hook(enter), draft.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _batch(batch_size: int, length: int) -> TokenBatch:
    """Rows of one supervised document each: as many anchors as are asked for find a place."""
    ids = torch.zeros(batch_size, length, dtype=torch.long)
    return TokenBatch(ids, torch.zeros_like(ids), torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))


def _of_a_step(phases: dict[str, Phase], times: float) -> dict[str, Phase]:
    """Phases of a whole step from those of the micro-batches rehearsed; the optimizer works once."""
    for name, phase in phases.items():
        if name != OPTIMIZER:
            phase.flops *= times
            phase.seconds *= times
    return phases
