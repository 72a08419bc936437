"""An exponential moving average of the draft's weights: what is evaluated, measured and exported, never trained.

Lightning's own WeightAveraging trains on from the average where a run ended, and swaps weights around validation only;
here resuming is exact, and acceptance is evaluated between training steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
import torch
from torch import Tensor

from dflash.training.checkpoint import AVERAGE_KEY


class WeightAverage(L.Callback):
    """average <- d * average + (1 - d) * weights after every optimizer step, d = min(decay, (1 + n) / (10 + n)).

    n: steps averaged so far, so that the average forgets where training began. In checkpoints the weights stay where
    they are and the average stands beside them, which is what ``load_draft`` reads. A run resumed from a checkpoint
    without an average starts one from its weights. Raises ValueError for a decay outside 0..1 (1 excluded).
    """

    def __init__(self, *, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.average.decay={decay}: must be at least 0 and below 1; try 0.999")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._num_averaged = 0
        self._step: int | None = None  # the optimizer step that the average was last brought up to

    def on_train_start(self, trainer: L.Trainer, module) -> None:
        self._bring_up(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        self._bring_up(trainer, module)

    def on_save_checkpoint(self, trainer: L.Trainer, module, checkpoint: dict) -> None:
        self._bring_up(trainer, module)
        weights = {name: average.clone() for name, average in self._average.items()}
        checkpoint[AVERAGE_KEY] = {"weights": weights, "num_averaged": self._num_averaged}

    def on_load_checkpoint(self, trainer: L.Trainer, module, checkpoint: dict) -> None:
        saved = checkpoint.get(AVERAGE_KEY)
        if saved is not None:
            self._average, self._num_averaged = dict(saved["weights"]), saved["num_averaged"]

    @contextmanager
    def swapped(self, trainer: L.Trainer, module) -> Iterator[None]:
        """Inside, the module's draft has the averaged weights; afterwards its own, bit for bit."""
        self._bring_up(trainer, module)
        own = {name: weight.data for name, weight in module.draft.named_parameters()}
        for name, weight in module.draft.named_parameters():
            weight.data = self._average[name]
        try:
            yield
        finally:
            for name, weight in module.draft.named_parameters():
                weight.data = own[name]

    @torch.no_grad()
    def _bring_up(self, trainer: L.Trainer, module) -> None:
        """Once a step, whichever callback asks first; the first call finds the average that the run starts from."""
        if trainer.global_step == self._step:
            return
        first, self._step = self._step is None, trainer.global_step
        if first:
            for name, weight in module.draft.named_parameters():
                self._average[name] = self._average.get(name, weight).to(weight.device, copy=True)
            return
        decay = min(self.decay, (1 + self._num_averaged) / (10 + self._num_averaged))
        for name, weight in module.draft.named_parameters():
            self._average[name].lerp_(weight, 1 - decay)
        self._num_averaged += 1


@contextmanager
def averaged(trainer: L.Trainer, module) -> Iterator[None]:
    """Inside, the module's draft is what a run is judged by: the average of its weights, where it keeps one."""
    average = next((c for c in trainer.callbacks if isinstance(c, WeightAverage)), None)
    if average is None:
        yield
        return
    with average.swapped(trainer, module):
        yield
