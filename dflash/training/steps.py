"""What a training run cost: optimizer steps, tokens and seconds, kept in its checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import numpy as np


class StepClock(L.Callback):
    """Tokens seen, and seconds of training steps by ``now`` (an array of clocks), evaluation and loading left out.

    on_step: called with the number of steps done whenever one is. The first of the callbacks, or it times others too.
    """

    def __init__(self, now: Callable[[], np.ndarray], on_step: Callable[[int], None]):
        self.now = now
        self.on_step = on_step
        self.num_tokens = 0
        self.seconds = np.zeros_like(now())
        self._started = now()
        self._step = 0

    def state_dict(self) -> dict:
        return {"num_tokens": self.num_tokens, "seconds": self.seconds.tolist()}

    def load_state_dict(self, state: dict) -> None:
        self.num_tokens, self.seconds = state["num_tokens"], np.array(state["seconds"])

    def on_train_batch_start(self, trainer: L.Trainer, module, batch, batch_idx: int) -> None:
        self._started = self.now()

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        self.seconds = self.seconds + self.now() - self._started
        self.num_tokens += batch[1].num_tokens
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.on_step(self._step)
