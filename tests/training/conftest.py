"""A small distillation set-up: a random gpt-oss target, real source text, the real module, data and trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn

from dflash.compose.keys import CONF
from dflash.data.documents import Document
from dflash.data.modules import DistillationDataModule
from dflash.draft.draft import Draft
from dflash.draft.layout import full_layout
from dflash.draft.shape import shape_draft
from dflash.draft.taps import explicit_taps
from dflash.objective.heads import HeadLoss
from dflash.objective.objective import Objective
from dflash.objective.terms import CrossEntropy
from dflash.objective.weights import dpace
from dflash.target.features import FeatureSource
from dflash.target.load import LoadedTarget
from dflash.training.callbacks import AcceptanceEval
from dflash.training.checkpoint import make_contract
from dflash.training.module import DistillationModule
from dflash.training.optim import adamw, cosine
from dflash.training.saving import Checkpoints
from tests.toys import TAPS, tiny_target

PROMPTS = CONF.parent / "assets" / "prompts" / "held_out.jsonl"  # a file that no edit of a test changes


def text_documents(count: int = 40, *, vocab_size: int = 64, seed: int = 0) -> list[Document]:
    """Real text, coarsely: bytes of the held-out prompts, folded into the small vocabulary."""
    text = PROMPTS.read_bytes()
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        at = int(rng.integers(0, len(text) - 60))
        ids = np.frombuffer(text[at : at + 48], dtype=np.uint8).astype(np.int32) % (vocab_size - 2)
        supervised = np.arange(48) >= 8
        found.append(Document(ids, supervised, f"text:{i}"))
    return found


@dataclass
class Setup:
    """Everything one training run needs."""

    loaded: LoadedTarget
    module: DistillationModule
    data: DistillationDataModule
    prompts: list[list[int]]


class _NoTokenizer:
    """Stands where only a fingerprint is asked of the tokenizer."""

    chat_template = None

    def get_vocab(self) -> dict:
        return {"a": 0}


def make_setup(
    *,
    accumulate: int = 1,
    batch_size: int = 4,
    num_workers: int = 0,
    steps: int = 8,
    depth: int = 1,
    features: FeatureSource | None = None,
    heads: HeadLoss | None = None,
    **variations,
):
    """A fresh set-up; equal arguments give equal weights. variations: of the draft, as ``shape_draft`` takes them."""
    target = tiny_target("gpt_oss")
    loaded = LoadedTarget(target, _NoTokenizer(), target.dims.vocab_size - 1, (0,))
    shape = shape_draft(
        target.dims,
        depth=depth,
        block_size=4,
        taps=explicit_taps(layers=TAPS),
        layout=full_layout(),
        mask_token_id=loaded.mask_token_id,
        **variations,
    )
    torch.manual_seed(0)
    module = DistillationModule(
        target,
        Draft(shape),
        Objective({"cross_entropy": (1.0, CrossEntropy())}, dpace(), chunk_blocks=16, heads=heads),
        optimizer=partial(adamw, lr=3e-3),
        schedule=cosine,
        steps=steps,
        num_anchors=6,
        seed=0,
        accumulate=accumulate,
        contract=make_contract(loaded, shape),
        features=features,
    )
    data = DistillationDataModule(
        text_documents, length=64, batch_size=batch_size, pad_id=0, seed=0, accumulate=accumulate,
        num_workers=num_workers,
    )  # fmt: skip
    prompts = [d.ids[:8].tolist() for d in text_documents(6, seed=1)]
    return Setup(loaded, module, data, prompts)


def fit(
    setup: Setup,
    folder: Path,
    *,
    steps: int,
    resume: Path | None = None,
    evaluate: bool = True,
    save_every: int = 100,
    precision: str = "32-true",
    extra: Sequence[L.Callback] = (),
) -> L.Trainer:
    """Train up to ``steps`` optimizer steps; every run ends in a checkpoint ``end.ckpt``."""
    callbacks: list[L.Callback] = []
    if evaluate:
        acceptance = AcceptanceEval(
            setup.loaded, setup.prompts, every=2, decode_every=4, num_decode=2, max_new_tokens=24, batch_size=4
        )
        callbacks = [acceptance, Checkpoints(folder=folder / "checkpoints", every=save_every)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=[*callbacks, *extra],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        precision=precision,
    )
    trainer.fit(setup.module, setup.data, ckpt_path=resume, weights_only=True if resume else None)
    trainer.save_checkpoint(folder / "end.ckpt")
    return trainer


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
