"""Preemption: a machine that is taken away says so by SIGTERM, and the run stops at the next border of steps."""

from __future__ import annotations

import signal
import threading

import lightning as L

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again (here with resume=auto)


class Preempted(SystemExit):
    """The run was stopped at ``step`` of ``steps``; unhandled, it ends the process with ``EXIT_CODE``."""

    def __init__(self, step: int, steps: int):
        super().__init__(EXIT_CODE)
        self.step = step
        self.steps = steps

    def __str__(self) -> str:
        return f"saved at step {self.step} of {self.steps}; the same command with resume=auto goes on"


class Preemption(L.Callback):
    """Turns SIGTERM, while training, into an orderly end of the fit once no micro-batch of an unfinished step is held.

    What the fit's end always does then happens: ``Checkpoints`` writes last.ckpt, from which a resumed run goes on bit
    for bit. All ranks stop at the same step, whichever of them got the signal.

    stopped_at: the step it stopped at, None for a run that was left alone. Outside of training a SIGTERM ends the
    process as it always does.
    """

    def __init__(self):
        self.stopped_at: int | None = None
        self._asked = False
        self._before = None

    def on_train_start(self, trainer: L.Trainer, module) -> None:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        if not module.at_step_border:
            return
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False) and trainer.global_step < trainer.max_steps:
            self.stopped_at = trainer.global_step
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, module) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, module, exception: BaseException) -> None:
        self._restore()

    def _ask(self, *_) -> None:
        self._asked = True

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None


def leave_if_preempted(trainer: L.Trainer) -> None:
    """Behind a fit: raises Preempted if a SIGTERM has ended it early, so that nobody takes it for a whole one."""
    for callback in trainer.callbacks:
        if isinstance(callback, Preemption) and callback.stopped_at is not None:
            raise Preempted(callback.stopped_at, trainer.max_steps)
