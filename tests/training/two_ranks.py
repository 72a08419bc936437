"""Runs in a process of its own, started by test_distribution.py: trains in two ranks as torchrun would start them.

    python two_ranks.py FOLDER

Imports once and forks into the ranks before anything is computed. Rank 0 writes what each run led to.
"""

from __future__ import annotations

import os
import socket
import sys
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import torch

from dflash.assemble.parts import build_parts
from dflash.compose import read_settings
from dflash.training.callbacks import AcceptanceEval
from dflash.training.optim import muon
from dflash.training.sharding import whole
from tests.training.conftest import make_setup

STRATEGIES = ("ddp", "fsdp")
WORLD = 2
STEPS = 3


def sgd(module: torch.nn.Module) -> torch.optim.Optimizer:
    """Linear in the gradient, so that rounding stays rounding; Adam's first step is its sign."""
    return torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)


class Losses(L.Callback):
    """The loss of every optimizer step."""

    def __init__(self):
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        if module.at_step_border:
            self.values.append(float(trainer.callback_metrics["train/loss"]))


def run(
    trainer_factory, folder: Path, *, batch_size: int, accumulate: int = 1, steps: int = STEPS, resume=None, **kind
):
    """Train up to ``steps`` and write losses and weights to ``folder``/result.pt, a checkpoint beside it.

    Every anchor there is is used, so that a batch has the same blocks however it is spread over ranks.
    """
    setup = make_setup(batch_size=batch_size, accumulate=accumulate, depth=2)
    setup.module.num_anchors = 64
    setup.module.make_optimizer = kind.get("optimizer", sgd)
    losses = Losses()
    acceptance = AcceptanceEval(
        setup.loaded, setup.prompts[:2], every=1, decode_every=1, num_decode=2, max_new_tokens=12
    )
    callbacks = [losses, acceptance] if kind.get("evaluate") else [losses]
    trainer = trainer_factory(
        max_steps=steps, max_epochs=-1, logger=False, callbacks=callbacks, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(setup.module, setup.data, ckpt_path=resume, weights_only=True if resume else None)
    trainer.save_checkpoint(folder / "end.ckpt")
    weights = {name: whole(value).clone() for name, value in setup.module.draft.state_dict().items()}
    found = {"losses": losses.values, "weights": weights, "world": trainer.world_size, "curve": acceptance.curve}
    if trainer.is_global_zero:
        torch.save(found, folder / "result.pt")


def rank(number: int, port: int, folder: Path) -> None:
    """What one rank does, under every strategy in turn."""
    where = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({key: str(value) for key, value in where.items()})
    torch.set_num_threads(1)
    for strategy in STRATEGIES:
        overrides = ["target=random_gpt_oss", f"trainer=cpu_{strategy}"]
        for name, kind in RUNS.items():
            factory = build_parts(read_settings("train", overrides), {"trainer": None})["trainer"]
            place = folder / strategy / name
            place.mkdir(parents=True, exist_ok=True)
            previous = kind.get("resume")
            run(factory, place, **kind | {"resume": previous and folder / strategy / previous / "end.ckpt"})


RUNS = {
    "whole": {"batch_size": 2},
    "first": {"batch_size": 2, "steps": 2},
    "resumed": {"batch_size": 2, "resume": "first"},
    "accumulated": {"batch_size": 1, "accumulate": 2},
    "muon": {"batch_size": 2, "steps": 1, "optimizer": muon},
    "evaluated": {"batch_size": 2, "steps": 2, "evaluate": True},
}


def main(folder: Path) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    ranks = [context.Process(target=rank, args=(number, port, folder)) for number in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return max(abs(process.exitcode) for process in ranks)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
