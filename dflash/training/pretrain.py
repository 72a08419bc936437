"""Pre-training of the tiny embedded target: a LightningModule over the same data stack as distillation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dflash.target.masks import additive, packed_causal
from dflash.types import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def next_token_losses(model: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """(nll_BS, counted_BS): negative log-likelihood in nats of each token given those before it in its document.

    Column 0 and the first token of every document are not counted: nothing stands before them.
    """
    window = model.config.sliding_window
    dtype = model.dtype
    masks = {
        "full_attention": additive(packed_causal(batch.documents_BS), dtype),
        "sliding_attention": additive(packed_causal(batch.documents_BS, window), dtype),
    }
    out = model(input_ids=batch.ids_BS, attention_mask=masks, position_ids=batch.positions_BS, use_cache=False)
    nll = F.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), batch.ids_BS[:, 1:].flatten(), reduction="none")
    nll_BS = F.pad(nll.view(batch.ids_BS.shape[0], -1), (1, 0))
    return nll_BS, (batch.documents_BS >= 0) & (batch.positions_BS > 0)


class PretrainModule(L.LightningModule):
    """Next-token prediction; logs held-out bits per byte."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int], Callable[[int], float]],
        steps: int,
        held_out_bytes: int = 0,
    ):
        super().__init__()
        self.model = model
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.steps = steps
        self.held_out_bytes = held_out_bytes
        self.held_out_nats = 0.0

    def on_fit_start(self):
        self.model.train()

    def training_step(self, indexed: tuple[int, TokenBatch], _):
        nll_BS, counted_BS = next_token_losses(self.model, indexed[1])
        loss = nll_BS[counted_BS].mean()
        self.log("train/nats_per_token", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self):
        self.held_out_nats = 0.0

    def validation_step(self, batch: TokenBatch, _):
        nll_BS, counted_BS = next_token_losses(self.model, batch)
        # Windows overlap: only tokens the window was made for are scored (``supervised``), each exactly once.
        self.held_out_nats += nll_BS[counted_BS & batch.supervised_BS].double().sum().item()

    def on_validation_epoch_end(self):
        bits_per_byte = self.held_out_nats / math.log(2) / self.held_out_bytes
        self.log("held_out/bits_per_byte", bits_per_byte, prog_bar=True)

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.make_schedule(self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
