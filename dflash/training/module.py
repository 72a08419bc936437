"""The LightningModule: a frozen target as a plain object, a trainable draft, and the training flow between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import nn

from dflash.blocks import draw_anchors, make_blocks, random_anchors, seeded_generator
from dflash.draft.draft import Draft
from dflash.draft.mask import block_geometry
from dflash.objective.objective import Objective
from dflash.target.features import FeatureSource, OnlineFeatures
from dflash.target.target import Target
from dflash.training.checkpoint import CONTRACT_KEY, check_contract
from dflash.training.products import product_precision
from dflash.training.sharding import is_sharded, shard, whole
from dflash.types import AnchoredBlocks, LossTerms, TargetFeatures, TokenBatch


class DistillationModule(L.LightningModule):
    """Distils ``draft`` from ``target``.

    Optimization is manual: gradients of the loss numerators are summed over ``accumulate`` micro-batches (and over
    ranks) and divided once by the sum of the denominators, so that the loss of a step does not depend on how it was
    cut into micro-batches. A step is the unit of everything: of the schedule, of checkpoints and of resuming.

    features: how the target's features are come by. anchors: which tokens of a batch may be anchors. matmul: see
    ``products.product_precision``.
    """

    def __init__(
        self,
        target: Target,
        draft: Draft,
        objective: Objective,
        *,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int], Callable[[int], float]],
        steps: int,
        num_anchors: int,
        seed: int,
        contract: dict,
        accumulate: int = 1,
        clip: float = 1.0,
        features: FeatureSource | None = None,
        anchors: Callable[..., torch.Tensor] = random_anchors,
        matmul: str = "highest",
    ):
        super().__init__()
        head = draft.shape.head
        if head is not None and head.restricts and objective.heads.base_share != (1.0, 1.0):
            raise ValueError(
                f"objective.heads.base_share={list(objective.heads.base_share)}: a {head.name} head gives most tokens "
                "no probability at all, so no other loss can be taken on its logits; set [1, 1]"
            )
        self.automatic_optimization = False
        self.target = target  # no nn.Module: stays out of state_dict, .train() and .to()
        self.draft = draft
        self.objective = objective
        self.make_optimizer = optimizer
        self.make_schedule = schedule
        self.steps = steps
        self.num_anchors = num_anchors
        self.seed = seed
        self.contract = contract
        self.accumulate = accumulate
        self.clip = clip
        self.features = features if features is not None else OnlineFeatures()
        self.anchors = anchors
        self.matmul = matmul
        self._denominator = 0.0
        self._micro_batches = 0
        self._sums: dict[str, list[torch.Tensor]] = {}

    @property
    def at_step_border(self) -> bool:
        """Whether no micro-batch of an unfinished step is held: where checkpoints are exact."""
        return self._micro_batches == 0

    def configure_model(self) -> None:
        """Under FSDP2 (ModelParallelStrategy) the draft is sharded, once."""
        if self.device_mesh is not None and not is_sharded(self.draft):
            shard(self.draft, self.device_mesh["data_parallel"])

    def on_fit_start(self):
        self.draft.train()

    def training_step(self, indexed: tuple[int, TokenBatch], _):
        """text -> tokens (the data module) -> target features -> anchored blocks -> draft -> loss."""
        k, batch = indexed
        features = self.features(self.target, batch, self.draft.shape.taps, with_last=self.objective.needs_target)
        with product_precision(self.matmul):
            terms = self.loss_terms(k, batch, features)
            with self._summed_over_ranks(last=self._micro_batches + 1 == self.accumulate):
                self.manual_backward(terms.numerator)
            self._add(terms)
        if self._micro_batches == self.accumulate:
            with product_precision("high" if self.matmul == "medium" else self.matmul):
                self._step()  # the small products of an update are slower in a processor's bf16 units

    def loss_terms(self, k: int, batch: TokenBatch, features: TargetFeatures) -> LossTerms:
        """Anchored blocks -> draft -> loss of micro-batch k; what a plan rehearses without weights, too."""
        blocks = self.draw_blocks(k, batch)
        inputs = self.target.embed(self.draft.inputs(blocks))
        hidden = self.draft(inputs, features.taps_BSTH, block_geometry(batch, blocks))
        progress = self.global_step / self.steps
        return self.objective(hidden, blocks, features, self.target, head=self.draft.head, progress=progress)

    def draw_blocks(self, k: int, batch: TokenBatch) -> AnchoredBlocks:
        """Anchors of micro-batch k of this rank, from a generator seeded by (seed, k, rank)."""
        generator = seeded_generator(self.seed, "anchors", k, self.global_rank)
        shape = self.draft.shape
        candidates_BS = self.anchors(batch, block_size=shape.block_size)
        anchors_BA, valid_BA = draw_anchors(
            batch, num_anchors=self.num_anchors, generator=generator, candidates_BS=candidates_BS
        )
        return make_blocks(batch, anchors_BA, valid_BA, block_size=shape.block_size, mask_token_id=shape.mask_token_id)

    def _summed_over_ranks(self, *, last: bool):
        """Ranks of DDP exchange gradients once a step, behind its last micro-batch. Shards do so each time, which
        spares them the memory of whole gradients."""
        strategy = self.trainer.strategy
        waits = not last and isinstance(strategy, ParallelStrategy)
        return strategy.block_backward_sync() if waits else nullcontext()

    def _add(self, terms: LossTerms) -> None:
        self._denominator = self._denominator + terms.denominator.double()
        self._micro_batches += 1
        for name, pair in terms.sums.items():
            new = torch.stack([part.double() for part in pair])
            self._sums[name] = self._sums[name] + new if name in self._sums else new

    def _step(self) -> None:
        """Divide the summed gradients by the summed denominators, clip, step, log."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        sums = {name: self.trainer.strategy.reduce(pair, reduce_op="sum") for name, pair in self._sums.items()}
        denominator = self.trainer.strategy.reduce(self._denominator, reduce_op="sum")
        # DDP and FSDP have averaged the gradients over ranks already; the sum is world times that.
        scale = (self.trainer.world_size / denominator.clamp_min(1e-12)).item()
        for parameter in self.draft.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        norm = whole(nn.utils.clip_grad_norm_(self.draft.parameters(), self.clip if self.clip else float("inf")))
        if not torch.isfinite(norm):
            raise ValueError(
                f"step {self.global_step}: the gradient is {norm.item()}; lower optimizer.lr or set "
                "trainer.precision=32-true"
            )
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        ratios = {f"train/{name}": float(pair[0] / pair[1].clamp_min(1e-12)) for name, pair in sums.items()}
        self.log_dict(ratios | {"train/gradient_norm": norm}, prog_bar=False)
        self.log("train/lr", schedule.get_last_lr()[0])
        self._denominator, self._micro_batches, self._sums = 0.0, 0, {}

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.draft)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.make_schedule(self.steps))]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        """(k, TokenBatch): the index stays on the host."""
        k, tokens = batch
        return k, tokens.to(device)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint[CONTRACT_KEY] = self.contract

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        check_contract(checkpoint[CONTRACT_KEY], self.contract, what="the checkpoint to resume from")
