"""Lightning's part of a run: seeding, loggers, the trainer and the fit, for distillation and pre-training alike."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger

from dflash.training.checkpoint import last_checkpoint
from dflash.training.preemption import Interrupted, leave_if_preempted

Callback = L.Callback

# Said of every run of ours, and about nothing that its user could or should change.
_NOISE = (
    ".*exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*overridden `transfer_batch_to_device`.*",
    ".*does not have many workers.*",
    ".*`training_step` returned `None`.*",
)
_TALKATIVE = (
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
    "huggingface_hub.utils._http",  # each retry towards a hub that cannot be reached; the error says it once
)


def begin(seed: int) -> None:
    """Seed every global generator, and silence what libraries say of every run."""
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    L.seed_everything(seed, workers=True, verbose=False)


def open_loggers(factories: Iterable[Callable[..., Logger]], *, config: Mapping, folder: Path) -> list[Logger]:
    """Loggers that write below ``folder``.

    W&B locks the keys of a sweep, so the whole configuration goes there under one key of its own. Raises ValueError if
    W&B lets no run begin.
    """
    made = [factory(save_dir=folder) for factory in factories]
    for logger in made:
        if isinstance(logger, WandbLogger):
            _experiment(logger).config.update({"config": dict(config)}, allow_val_change=True)
    return made


def _experiment(logger: WandbLogger):
    from wandb.errors import Error  # a second to import; only those who log there pay it

    try:
        return logger.experiment
    except Error as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"logger=wandb: {reason}; or set logger.wandb.mode=offline, and sync later") from error


def make_trainer(
    factory: Callable[..., L.Trainer],
    *,
    steps: int,
    callbacks: list[L.Callback],
    loggers: list[Logger],
    folder: Path,
    validate_every: int | None = None,
    **options: Any,
) -> L.Trainer:
    """The trainer of conf ``trainer`` for ``steps`` optimizer steps; validation every that many micro-batches."""
    validation = {"limit_val_batches": 0} if validate_every is None else {"val_check_interval": validate_every}
    return factory(
        max_steps=steps,
        max_epochs=-1,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=folder,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),  # else Lightning adds its own
        enable_progress_bar=any(isinstance(c, L.pytorch.callbacks.ProgressBar) for c in callbacks),
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        **validation,
        **options,
    )


def fit(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule, *, resume: Path | None) -> None:
    """Fit, from the start or from a checkpoint, whose contents are data and never code.

    Raises Preempted or Interrupted, which end the process, if a SIGTERM or Ctrl-C has ended the fit early.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit as end:  # so Lightning ends a fit that Ctrl-C has stopped
        if trainer.interrupted:
            raise Interrupted(trainer.global_step, trainer.max_steps) from end
        raise
    leave_if_preempted(trainer)


def periodic_checkpoints(*, folder: Path, every: int) -> L.Callback:
    """The newest checkpoint, every ``every`` optimizer steps; for runs without acceptance."""
    return ModelCheckpoint(
        dirpath=folder, filename="step-{step}", auto_insert_metric_name=False, every_n_train_steps=every, save_last=True
    )


def resume_from(resume: str | None, *, outputs: str | Path, name: str) -> Path | None:
    """The checkpoint that ``resume`` names; auto is the newest run of this name. Raises ValueError if there is none."""
    if resume is None:
        return None
    if resume != "auto":
        return last_checkpoint(resume)
    found = sorted((Path(outputs) / name).glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(
            f"resume=auto: no run with checkpoints under {Path(outputs) / name}; leave resume out to start one"
        )
    return found[-1]
