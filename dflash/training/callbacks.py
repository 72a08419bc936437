"""Callbacks: acceptance evaluation on fixed prompts every N optimizer steps, and the progress bar."""

from __future__ import annotations

import time
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.callbacks import RichProgressBar

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.evaluation.acceptance import AcceptanceStats, pack_continuations, walk_features
from dflash.target.load import LoadedTarget
from dflash.training.averaging import averaged
from dflash.training.sharding import gathered

METRIC = "acceptance/mean"


class AcceptanceEval(L.Callback):
    """The chain walk over fixed prompts every ``every`` steps, real decoding of some of them every ``decode_every``.

    Both must give the same lists on an fp32 target: a difference is a bug in mask, positions or cache, and raises
    RuntimeError. The target's own greedy continuations are decoded once, before training. Evaluation draws no random
    numbers and leaves the draft's mode as it was, so training is bit-identical with it and without.

    curve: one entry an evaluation (step, mean, median, p90, loss), kept in checkpoints. seconds: what it all cost.
    """

    def __init__(
        self,
        loaded: LoadedTarget,
        prompts: Sequence[Sequence[int]],
        *,
        every: int,
        decode_every: int,
        num_decode: int = 4,
        max_new_tokens: int = 128,
        block_size: int | None = None,
        batch_size: int = 16,
    ):
        if every < 1 or decode_every < 1 or decode_every % every:
            raise ValueError(
                f"callbacks.acceptance.decode_every={decode_every}: must be a positive multiple of eval_every={every}"
            )
        self.loaded = loaded
        self.prompts = [list(prompt) for prompt in prompts]
        self.every = every
        self.decode_every = decode_every
        self.num_decode = num_decode
        self.max_new_tokens = max_new_tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.curve: list[dict] = []
        self.seconds = 0.0
        self._packed: list = []
        self._last_step = -1

    def state_dict(self) -> dict:
        return {"curve": self.curve, "seconds": self.seconds, "last_step": self._last_step}

    def load_state_dict(self, state: dict) -> None:
        self.curve, self.seconds, self._last_step = state["curve"], state["seconds"], state["last_step"]

    def on_train_start(self, trainer: L.Trainer, module) -> None:
        started = time.perf_counter()
        self._packed = [self._continue(module.draft, batch) for batch in self._batches()]
        self.seconds += time.perf_counter() - started
        if trainer.global_step == 0:
            self._evaluate(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module, outputs, batch, batch_idx: int) -> None:
        step = trainer.global_step
        # Under accumulation the step stands still for several micro-batches: evaluate it once.
        if step != self._last_step and step % self.every == 0:
            self._evaluate(trainer, module)

    def _batches(self) -> list[list[list[int]]]:
        return [self.prompts[i : i + self.batch_size] for i in range(0, len(self.prompts), self.batch_size)]

    def _continue(self, draft, prompts: list[list[int]]):
        """Continuations and their features for one batch: they depend on the target and the taps only."""
        target = self.loaded.target
        traces, _ = AutoregressiveDecoder(target).generate(
            prompts, max_new_tokens=self.max_new_tokens, stop_token_ids=self.loaded.stop_token_ids
        )
        return pack_continuations(target, draft, prompts, [trace.tokens for trace in traces])

    def _evaluate(self, trainer: L.Trainer, module) -> None:
        started = time.perf_counter()
        step = trainer.global_step
        self._last_step = step
        draft, training = module.draft, module.draft.training
        draft.eval()
        exact = torch.autocast(self.loaded.target.device.type, enabled=False)
        with torch.no_grad(), exact, averaged(trainer, module):
            whole = gathered(draft)
            lists = self._walk(whole)
            if step and step % self.decode_every == 0:
                self._compare(whole, lists)
        draft.train(training)
        self._log(trainer, module, AcceptanceStats(tuple(lists), self._block_size(draft)))
        self.seconds += time.perf_counter() - started

    def _block_size(self, draft) -> int:
        return self.block_size if self.block_size is not None else draft.shape.block_size

    def _walk(self, draft) -> list[tuple[int, ...]]:
        walks = (
            walk_features(self.loaded.target, draft, *packed, block_size=self._block_size(draft))
            for packed in self._packed
        )
        return [lengths for walk in walks for lengths in walk]

    def _compare(self, draft, lists: list[tuple[int, ...]]) -> None:
        decoder = SpeculativeDecoder(self.loaded.target, draft, block_size=self._block_size(draft))
        traces, _ = decoder.generate(
            self.prompts[: self.num_decode],
            max_new_tokens=self.max_new_tokens,
            stop_token_ids=self.loaded.stop_token_ids,
        )
        exact = self.loaded.target.dtype == torch.float32
        for i, trace in enumerate(traces):
            if exact and trace.lengths != lists[i]:
                raise RuntimeError(
                    f"prompt {i}: chain walk {lists[i]} and real decoding {trace.lengths} differ; "
                    "training and decoding disagree about masks, positions or caches"
                )

    def _log(self, trainer: L.Trainer, module, stats: AcceptanceStats) -> None:
        values = stats.to_dict()
        loss = trainer.callback_metrics.get("train/loss")
        point = {key: values[key] for key in ("mean", "median", "p90")}
        self.curve.append({"step": trainer.global_step, **point, "loss": None if loss is None else float(loss)})
        metrics = {f"acceptance/{key}": value for key, value in point.items()}
        metrics |= {f"acceptance/survival_{k}": s for k, s in enumerate(values["prefix_survival"][1:], start=2)}
        total = max(1, values["num_rounds"])
        metrics |= {f"acceptance/share_{n}": count / total for n, count in values["histogram"].items()}
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in metrics.items()})
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


class ProgressBar(RichProgressBar):
    """Rich progress over the whole run, not over the endless stream of batches, with loss and acceptance."""

    @property
    def total_train_batches(self) -> int:
        """Micro-batches of the whole run: Lightning would count the steps left, against batches since step 0."""
        return self.trainer.max_steps * self.trainer.datamodule.accumulate

    def get_metrics(self, trainer: L.Trainer, module) -> dict:
        shown = {"loss": "train/loss", "acceptance": METRIC}
        values = {name: trainer.callback_metrics.get(key) for name, key in shown.items()}
        return {name: f"{float(value):.3f}" for name, value in values.items() if value is not None}
