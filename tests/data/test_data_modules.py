"""A resumed run sees the batches it would have seen, under a real trainer; and what packing reports."""

from __future__ import annotations

from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment

from dflash.data.documents import Document
from dflash.data.modules import DistillationDataModule, PretrainDataModule
from dflash.data.stream import BatchStream, MappedRows

STEPS, SAVED = 7, 3  # an odd step, inside an epoch


def documents(count: int = 40, *, prompt: int = 2) -> list[Document]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 14, size=count)
    return [
        Document(rng.integers(1, 50, size=n).astype(np.int32), np.arange(n) >= prompt, f"d{i}")
        for i, n in enumerate(sizes)
    ]


class Toy(L.LightningModule):
    """Manual optimization with accumulation, as in distillation; remembers the batches it saw."""

    def __init__(self, accumulate: int):
        super().__init__()
        self.automatic_optimization = False
        self.accumulate = accumulate
        self.weight = torch.nn.Parameter(torch.zeros(64))
        self.seen: list[tuple[int, torch.Tensor]] = []

    def training_step(self, indexed, _):
        k, batch = indexed
        self.seen.append((k, batch.ids_BS.clone()))
        self.manual_backward((self.weight[batch.ids_BS] - batch.positions_BS).square().mean() / self.accumulate)
        if (k + 1) % self.accumulate == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(module, data, folder, *, steps, checkpoint=None, **options):
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=SAVED, save_top_k=-1)],
        plugins=[LightningEnvironment()],
        **options,
    )
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return trainer


def module(accumulate=1, num_workers=0, **options):
    sizes = {"length": 16, "batch_size": 2, "pad_id": 0, "seed": 1}
    return DistillationDataModule(documents, **{**sizes, **options}, accumulate=accumulate, num_workers=num_workers)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual", "ignore:The dirpath has changed")
@pytest.mark.filterwarnings("error:.*dataloader is not resumable")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_bit_exact(tmp_path, num_workers, accumulate, streaming):
    data = partial(module, accumulate, num_workers, streaming=streaming, buffer_rows=4)
    whole = Toy(accumulate)
    fit(whole, data(), tmp_path / "whole", steps=STEPS)
    assert [k for k, _ in whole.seen] == list(range(STEPS * accumulate))

    resumed = Toy(accumulate)
    checkpoint = tmp_path / "whole" / f"step={SAVED}.ckpt"
    trainer = fit(resumed, data(), tmp_path / "rest", steps=STEPS, checkpoint=checkpoint)
    assert trainer.global_step == STEPS
    rest = whole.seen[SAVED * accumulate :]
    assert [k for k, _ in resumed.seen] == [k for k, _ in rest]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(resumed.seen, rest, strict=True))
    assert torch.equal(resumed.weight, whole.weight)
    assert not torch.equal(whole.weight, torch.zeros(64))


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual", "ignore:The dirpath has changed")
def test_steps_known_to_the_optimizer_do_not_spoil_the_resume(tmp_path):
    """``estimated_stepping_batches`` builds the loader before the step is restored."""

    class Eager(Toy):
        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == STEPS
            return super().configure_optimizers()

    fit(Eager(1), module(), tmp_path, steps=STEPS)
    resumed = Eager(1)
    fit(resumed, module(), tmp_path / "rest", steps=STEPS, checkpoint=tmp_path / f"step={SAVED}.ckpt")
    assert [k for k, _ in resumed.seen] == list(range(SAVED, STEPS))


def test_streamed_and_held_rows_are_the_same_rows():
    def rows(streaming):
        data = module(streaming=streaming)
        data.setup()
        count = len(_held().rows.rows)
        found = [data.rows.row(i) for i in range(count)]
        return sorted(tuple(d.origin for d in row) for row in found)

    assert rows(True) == rows(False)


def _held():
    data = module()
    data.setup()
    return data


def test_long_documents_are_cut_and_counted_or_split():
    long = Document(np.arange(40, dtype=np.int32), np.arange(40) >= 10, "long")
    short = Document(np.arange(5, dtype=np.int32), np.arange(5) >= 2, "short")

    def packed(how):
        data = DistillationDataModule(
            lambda: [long, short], length=16, batch_size=1, pad_id=0, seed=0, long=how, streaming=False
        )
        data.setup()
        data.setup("fit")  # a second call changes nothing
        return data.summary, sorted(len(d) for row in data.rows.rows for d in row)

    summary, sizes = packed("cut")
    assert sizes == [5, 16]
    assert vars(summary) == {
        "num_documents": 2, "num_cut": 1, "num_tokens": 21, "num_supervised": 9, "num_rows": 2
    }  # fmt: skip
    summary, sizes = packed("split")
    assert sizes == [5, 8, 16, 16]
    assert (summary.num_cut, summary.num_tokens, summary.num_supervised) == (0, 45, 33)


def test_refusals():
    with pytest.raises(ValueError, match=r"data.long='drop' is none of cut, split"):
        module(long="drop")
    with pytest.raises(ValueError, match=r"data.batch_size=0 must be at least 1"):
        module(batch_size=0)
    with pytest.raises(ValueError, match=r"data.length=16 leaves no supervised token in 40 documents"):
        data = module()
        data.load_documents = lambda: documents(prompt=99)
        data.setup()
    with pytest.raises(ValueError, match="no rows to train on"):
        data = module()
        data.load_documents = list
        data.setup()


class Windows(Toy):
    """Also remembers the held-out windows."""

    def validation_step(self, batch, _):
        self.windows = [*getattr(self, "windows", []), batch]


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual")
def test_pretraining_trains_on_rows_and_scores_every_window_once(tmp_path):
    rows = [(d,) for d in documents()]
    held_out = [(d,) for d in documents(7)]
    data = PretrainDataModule(rows, held_out, length=16, batch_size=2, pad_id=0, seed=1)
    toy = Windows(1)
    fit(toy, data, tmp_path, steps=4, val_check_interval=4, check_val_every_n_epoch=None, num_sanity_val_steps=0)
    stream = BatchStream(MappedRows(rows, 1), length=16, batch_size=2, pad_id=0)
    assert all(torch.equal(ids, stream[k][1].ids_BS) for k, ids in toy.seen)
    assert [b.ids_BS.shape[0] for b in toy.windows] == [2, 2, 2, 1]
    found = torch.cat([b.ids_BS for b in toy.windows])
    for row, (document,) in zip(found, held_out, strict=True):
        assert row[: len(document)].tolist() == document.ids.tolist()
