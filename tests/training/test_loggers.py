"""What a run logs reaches every logger: CSV, and W&B without an account; the whole configuration goes along."""

from __future__ import annotations

import csv
import time

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from dflash.training.callbacks import AcceptanceEval
from dflash.training.fitting import open_loggers
from tests.training.conftest import make_setup

EXPECTED = {"train/loss", "train/lr", "acceptance/mean", "acceptance/median", "acceptance/p90", "acceptance/survival_2"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a short run with both loggers, and the acceptance it measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_SILENT", "true")
        patch.setattr(rank_zero_only, "rank", 0)  # tests of several ranks, in this process before, may have set it
        folder = tmp_path_factory.mktemp("run")
        factories = [
            lambda save_dir: CSVLogger(save_dir, name="", version="", flush_logs_every_n_steps=1),
            lambda save_dir: WandbLogger(save_dir=save_dir, project="dflash", mode="offline"),
        ]
        loggers = open_loggers(factories, config={"draft": {"depth": 1}, "swept": 3.25}, folder=folder)
        setup = make_setup()
        acceptance = AcceptanceEval(setup.loaded, setup.prompts, every=2, decode_every=4, max_new_tokens=16)
        trainer = L.Trainer(
            accelerator="cpu", max_steps=4, max_epochs=-1, logger=loggers, callbacks=[acceptance],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(setup.module, setup.data)
        loggers[1].experiment.finish()
        return folder, acceptance.curve


def test_csv_holds_losses_and_acceptance(run):
    folder, curve = run
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert set(rows[0]) >= EXPECTED
    logged = {int(row["step"]): float(row["acceptance/mean"]) for row in rows if row["acceptance/mean"]}
    assert logged == pytest.approx({point["step"]: point["mean"] for point in curve})
    assert len([row for row in rows if row["train/loss"]]) == 4


def test_wandb_offline_holds_them_too_and_the_configuration_under_one_key(run):
    folder, _ = run
    (record,) = folder.rglob("*.wandb")
    deadline = time.monotonic() + 60
    while b"swept" not in (content := record.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.5)  # another process writes it, which may be late on a busy machine
    for name in EXPECTED:
        assert name.encode() in content
    assert b"swept" in content and b"3.25" in content


def test_no_account_is_one_sentence(tmp_path, monkeypatch):
    from wandb.errors import UsageError

    def no_account(self):
        raise UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(WandbLogger, "experiment", property(no_account))
    with pytest.raises(ValueError, match=r"^logger=wandb: No API key .* to log in; or set logger.wandb.mode=offline"):
        open_loggers([lambda save_dir: WandbLogger(save_dir=save_dir)], config={}, folder=tmp_path)
