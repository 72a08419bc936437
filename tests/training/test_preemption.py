"""SIGTERM while training: stop at a border of steps, save, tell so by the exit code, and go on bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from dflash.assemble.stopping import stops_are_told
from dflash.compose.keys import CONF
from dflash.training.checkpoint import read_checkpoint
from dflash.training.fitting import fit, make_trainer
from dflash.training.preemption import EXIT_CODE, Interrupted, Preemption
from dflash.training.saving import Checkpoints
from tests.training.conftest import make_setup, weights


class _TakeAway(L.Callback):
    """Sends this process a SIGTERM behind micro-batch ``at``."""

    def __init__(self, at: int):
        self.at = at

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch[0] == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, *callbacks: L.Callback, resume: Path | None = None):
    setup = make_setup(accumulate=3, batch_size=2)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=5, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Checkpoints(folder=folder, every=100), *callbacks],
    )  # fmt: skip
    trainer.fit(setup.module, setup.data, ckpt_path=resume, weights_only=True if resume else None)
    return weights(setup.module)


def test_it_stops_at_a_border_of_steps_and_goes_on_bit_for_bit(tmp_path):
    """The signal comes behind the first of the three micro-batches of step 3."""
    before, preemption = signal.getsignal(signal.SIGTERM), Preemption()
    train(tmp_path / "cut", _TakeAway(6), preemption)
    assert preemption.stopped_at == 3
    assert signal.getsignal(signal.SIGTERM) == before
    assert read_checkpoint(tmp_path / "cut" / "last.ckpt")["global_step"] == 3
    left_alone = Preemption()
    resumed = train(tmp_path / "resumed", left_alone, resume=tmp_path / "cut" / "last.ckpt")
    whole = train(tmp_path / "whole")
    assert left_alone.stopped_at is None
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    preemption = Preemption()
    train(tmp_path, _TakeAway(14), preemption)
    assert preemption.stopped_at is None


class _CtrlC(L.Callback):
    """Interrupts behind micro-batch ``at``."""

    def __init__(self, at: int):
        self.at = at

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch[0] == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("at", "saved"), [(5, True), (6, False)], ids=["at a border", "within a step"])
def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(tmp_path, capsys, at, saved):
    """Three micro-batches are a step; within one, the last border's file is kept, and here none was written."""
    before, setup = signal.getsignal(signal.SIGINT), make_setup(accumulate=3, batch_size=2)
    trainer = make_trainer(
        partial(L.Trainer, accelerator="cpu"), steps=5, loggers=[], folder=tmp_path,
        callbacks=[Checkpoints(folder=tmp_path, every=100), _CtrlC(at)],
    )  # fmt: skip
    with pytest.raises(Interrupted) as caught, stops_are_told(tmp_path):
        fit(trainer, setup.module, setup.data, resume=None)
    signal.signal(signal.SIGINT, before)  # Lightning, about to end the process, lets no second one through
    assert caught.value.code == 130 and (tmp_path / "last.ckpt").exists() == saved
    rest = "the same command with resume=auto goes on from the newest checkpoint" if saved else "nothing was saved"
    assert capsys.readouterr().out.endswith(f"interrupted in step 3 of 5; {rest}\n")
    if saved:
        assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2


@pytest.mark.slow
def test_the_script_exits_with_its_own_code_and_resume_auto_goes_on(tmp_path):
    def script(outputs: Path, *overrides: str) -> list[str]:
        sizes = ["steps=100", "eval_every=100", "checkpoint_every=2", "prompts.count=1", "validation.count=1"]
        quick = ["decoding.max_new_tokens=4", "decoding.batch_sizes=[1]", "decoding.temperatures=[0.0]"]
        more = ["callbacks=quiet", "logger=none", "measure_untrained=false", f"paths.cache={tmp_path / 'cache'}"]
        where = [f"paths.outputs={outputs}", f"data.prompts.corpus_root={CONF.parent / 'dflash' / 'draft'}"]
        return [sys.executable, "train.py", "experiment=smoke", *sizes, *quick, *more, *where, *overrides]

    def end(outputs: Path) -> dict:
        newest = max(outputs.glob("smoke/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        return read_checkpoint(newest)

    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(script(cut), cwd=CONF.parent, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not list(cut.glob("smoke/*/checkpoints/step-2.ckpt")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == EXIT_CODE, said
    stopped = end(cut)["global_step"]
    assert 2 <= stopped < 100 and f"step {stopped} of 100" in said and "resume=auto" in said
    for command in (script(cut, "resume=auto"), script(whole)):
        subprocess.run(command, cwd=CONF.parent, check=True, capture_output=True)
    resumed, uninterrupted = end(cut), end(whole)
    assert resumed["global_step"] == uninterrupted["global_step"] == 100
    for name, value in uninterrupted["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name
