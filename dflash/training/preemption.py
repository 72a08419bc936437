"""Runs that are stopped early: by SIGTERM, as of a machine taken away, at a border of steps; by Ctrl-C at once."""

from __future__ import annotations

import signal
import threading

import lightning as L

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again (here with resume=auto)
INTERRUPTED_CODE = 128 + signal.SIGINT  # what shells give for a program that Ctrl-C ended


class Stopped(SystemExit):
    """The run was stopped at ``step`` of ``steps``; unhandled, it ends the process with ``exit_code``."""

    exit_code = EXIT_CODE

    def __init__(self, step: int, steps: int):
        super().__init__(self.exit_code)
        self.step = step
        self.steps = steps


class Preempted(Stopped):
    """By SIGTERM, and saved."""

    def __str__(self) -> str:
        return f"SIGTERM: saved at step {self.step} of {self.steps}"


class Interrupted(Stopped):
    """By Ctrl-C, in the middle of a step or not: its newest checkpoint may be of an earlier one."""

    exit_code = INTERRUPTED_CODE

    def __str__(self) -> str:
        return f"interrupted in step {self.step + 1} of {self.steps}"


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
