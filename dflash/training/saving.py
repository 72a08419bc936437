"""When checkpoints are written: every N optimizer steps, at the best acceptance, and at the end, however it comes."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L

from dflash.training.callbacks import AcceptanceEval


class Checkpoints(L.Callback):
    """step-<n>.ckpt every ``every`` steps (the newest ``keep``, -1 for all), last.ckpt, best.ckpt by acceptance.

    Only written at borders of optimizer steps, where the step number alone says how to go on: an interruption in the
    middle of an accumulated step leaves the last border's file. Every file is whole or absent.
    """

    def __init__(self, *, folder: str | Path, every: int, keep: int = 1):
        if every < 1:
            raise ValueError(f"checkpoint_every={every}: must be at least 1")
        if keep < 1 and keep != -1:
            raise ValueError(f"callbacks.checkpoints.keep={keep}: must be at least 1, or -1 for all")
        self.folder = Path(folder)
        self.every = every
        self.keep = keep
        self.best = float("-inf")
        self._seen = 0  # entries of the acceptance curve already judged
        self._saved = -1  # step of the last periodic checkpoint

    def state_dict(self) -> dict:
        return {"best": self.best, "seen": self._seen}

    def load_state_dict(self, state: dict) -> None:
        self.best, self._seen = state["best"], state["seen"]

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        self._save_best(trainer)
        step = trainer.global_step
        if step % self.every == 0 and step != self._saved and step > 0:
            self._saved = step
            self._save(trainer, f"step-{step}.ckpt")
            self._save(trainer, "last.ckpt")
            self._forget(trainer)

    def on_train_end(self, trainer: L.Trainer, module) -> None:
        self._save(trainer, "last.ckpt")

    def on_exception(self, trainer: L.Trainer, module, exception: BaseException) -> None:
        # Other ranks may be gone: a collective save would wait for them for ever.
        if trainer.world_size == 1 and module.at_step_border and trainer.global_step > 0:
            self._save(trainer, "last.ckpt")

    def _save_best(self, trainer: L.Trainer) -> None:
        curve = next((c.curve for c in trainer.callbacks if isinstance(c, AcceptanceEval)), [])
        if len(curve) == self._seen:
            return
        self._seen = len(curve)
        if curve[-1]["step"] > 0 and curve[-1]["mean"] > self.best:
            self.best = curve[-1]["mean"]
            self._save(trainer, "best.ckpt")

    def _save(self, trainer: L.Trainer, name: str) -> None:
        unfinished = self.folder / f".{name}.part"
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            os.replace(unfinished, self.folder / name)

    def _forget(self, trainer: L.Trainer) -> None:
        if self.keep == -1 or not trainer.is_global_zero:
            return
        found = sorted(self.folder.glob("step-*.ckpt"), key=lambda path: int(path.stem.removeprefix("step-")))
        for path in found[: -self.keep]:
            path.unlink()
