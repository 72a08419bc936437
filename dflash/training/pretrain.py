"""Pre-training of the tiny embedded target: a LightningModule over the same data stack as distillation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dflash.target.masks import additive, packed_causal
from dflash.training.checkpoint import read_state
from dflash.types import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def next_token_losses(model: PreTrainedModel, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """(nll_BS, counted_BS): negative log-likelihood in nats of each token given those before it in its document.

    Column 0 and the first token of every document are not counted: nothing stands before them.
    """
    window = model.config.sliding_window
    device = batch.ids_BS.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    masks = {
        "full_attention": additive(packed_causal(batch.documents_BS), dtype),
        "sliding_attention": additive(packed_causal(batch.documents_BS, window), dtype),
    }
    hidden_BSH = model.base_model(
        input_ids=batch.ids_BS, attention_mask=masks, position_ids=batch.positions_BS, use_cache=False
    ).last_hidden_state
    head = model.get_output_embeddings()
    # Row by row with recomputation: the logits of a whole batch fall out of the cache and cost more than their product.
    nll = [
        checkpoint(_row_losses, head, hidden_SH[:-1], ids_S[1:], use_reentrant=False)
        for hidden_SH, ids_S in zip(hidden_BSH, batch.ids_BS, strict=True)
    ]
    return F.pad(torch.stack(nll), (1, 0)), (batch.documents_BS >= 0) & (batch.positions_BS > 0)


def _row_losses(head: nn.Module, hidden_SH: Tensor, labels_S: Tensor) -> Tensor:
    return F.cross_entropy(head(hidden_SH).float(), labels_S, reduction="none")


@torch.no_grad()
def held_out_bits(model: PreTrainedModel, batches: Iterable[TokenBatch], *, num_bytes: int) -> float:
    """Bits per byte over windows that overlap."""
    model.eval()
    return sum(_scored_nats(model, batch.to(model.device)) for batch in batches) / math.log(2) / num_bytes


def _scored_nats(model: PreTrainedModel, batch: TokenBatch) -> float:
    """Of overlapping windows only the tokens a window was made for are scored (``supervised``), each exactly once."""
    nll_BS, counted_BS = next_token_losses(model, batch)
    return nll_BS[counted_BS & batch.supervised_BS].double().sum().item()


def read_weights(module: L.LightningModule, checkpoint: Path, *, key: str) -> dict[str, Tensor]:
    """The weights in a checkpoint of a run of ``module``, which ``key`` names. Raises ValueError for other names or
    shapes, and for what is no checkpoint."""
    state = read_state(checkpoint)["state_dict"]
    own = {name: weight.shape for name, weight in module.state_dict().items()}
    if {name: weight.shape for name, weight in state.items()} != own:
        raise ValueError(f"{key}={str(checkpoint)!r}: its weights have other names or shapes than this model")
    return state


def average_weights(module: L.LightningModule, states: Sequence[dict[str, Tensor]]) -> None:
    """The module's weights become the mean of its own and ``states``, in place.

    Runs that part on the plateau of one schedule end in one basin, whose middle generalises better than either end
    (model soups, arXiv 2203.05482).
    """
    with torch.no_grad():
        for name, weight in module.state_dict().items():
            weight.copy_(torch.stack([weight, *(state[name].to(weight) for state in states)]).mean(0))


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
        self.held_out_nats += _scored_nats(self.model, batch)

    def on_validation_epoch_end(self):
        bits_per_byte = self.held_out_nats / math.log(2) / self.held_out_bytes
        self.log("held_out/bits_per_byte", bits_per_byte, prog_bar=True)

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.model)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.make_schedule(self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
