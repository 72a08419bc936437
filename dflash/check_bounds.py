"""Bounds and choices of single values of a configuration, by dotted key; what ``check`` holds values against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """low..high, ``low`` itself included unless ``above``; ``whole``: no fractions; ``example``: a value that works."""

    low: float
    example: Any
    high: float | None = None
    above: bool = False
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """False for anything that is no number, too."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if self.whole and value != int(value):
            return False
        return (value > self.low if self.above else value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        number = "a whole number" if self.whole else "a number"
        if self.high is not None and not self.above:
            return f"{number} between {self.low} and {self.high}"
        if self.high is not None:
            return f"{number} above {self.low} and at most {self.high}"
        return f"{number} above {self.low}" if self.above else f"{number} of at least {self.low}"


_COMMON = {
    "seed": Bound(0, 0),
    "steps": Bound(1, 1000),
    "eval_every": Bound(1, 100),
    "checkpoint_every": Bound(1, 200),
    "accumulate": Bound(1, 1),
    "clip": Bound(0, 1.0, above=True),
    "optimizer.lr": Bound(0, 6e-4, above=True),
    "optimizer.weight_decay": Bound(0, 0.0),
    "optimizer.momentum": Bound(0, 0.95, high=1),
    "optimizer.betas": Bound(0, 0.9, high=1),
    "schedule.warmup_fraction": Bound(0, 0.04, high=1),
    "schedule.decay_fraction": Bound(0, 0.3, high=1),
    "schedule.final": Bound(0, 0.0, high=1),
}
_REGENERATION = {  # python -m dflash.data regenerate
    "count": Bound(1, "null"),
    "max_prompt_tokens": Bound(1, "null"),
    "max_new_tokens": Bound(1, 1024),
    "temperature": Bound(0, 0.0),
    "top_k": Bound(1, 50, whole=True),
    "top_p": Bound(0, 0.95, high=1, above=True),
    "min_p": Bound(0, 0.05, high=1),
    "shard_size": Bound(1, 256),
    "give_up_after": Bound(1, 64),
    "engine.batch_size": Bound(1, 64),
    "engine.concurrency": Bound(1, 64),
    "engine.timeout_seconds": Bound(0, 600.0, above=True),
    "engine.backoff.attempts": Bound(1, 8),
    "engine.backoff.first_seconds": Bound(0, 0.5),
    "engine.backoff.most_seconds": Bound(0, 60.0),
}
BOUNDS = _COMMON | {
    "block_size": Bound(1, 8),
    "num_anchors": Bound(1, 24),
    "anchors.ngram": Bound(1, 4),
    "anchors.thinning": Bound(1, 4),
    "draft.depth": Bound(1, 2),
    "draft.mlp_ratio": Bound(0, 3.0, above=True),
    "draft.num_heads": Bound(1, "null"),
    "draft.num_kv_heads": Bound(1, "null"),
    "draft.head_dim": Bound(2, "null"),
    "draft.taps.count": Bound(1, 3),
    "draft.convolution": Bound(1, 16, whole=True),
    "draft.head.rank": Bound(1, 256, whole=True),
    "draft.head.state_size": Bound(1, 1024, whole=True),
    "draft.head.top_k": Bound(1, 16, whole=True),
    "draft.layout.window": Bound(1, 2048),
    "objective.heads.base_share": Bound(0, 0.0, high=1),
    "objective.weighting.alpha": Bound(0, 0.5, high=1),
    "objective.weighting.gamma": Bound(0, 4.0, above=True),
    "objective.weighting.inner.alpha": Bound(0, 0.5, high=1),
    "objective.weighting.inner.gamma": Bound(0, 4.0, above=True),
    "objective.chunk_blocks": Bound(1, 64),
    "data.length": Bound(2, 384),
    "data.batch_size": Bound(1, 8),
    "data.num_workers": Bound(0, 0),
    "data.num_open": Bound(1, 16),
    "data.buffer_rows": Bound(1, 256),
    "data.lanes": Bound(1, 1, whole=True),
    "data.max_tokens": Bound(1, "null"),
    "data.max_new_tokens": Bound(1, 192),
    "data.temperature": Bound(0, 0.0),
    "data.regenerate_batch_size": Bound(1, 64),
    "data.shard_size": Bound(1, 256),
    "data.prompts.count": Bound(1, 1024),
    "data.prompts.chat_fraction": Bound(0, 0.25, high=1),
    "data.prompts.max_tokens": Bound(1, 1024),
    "budget.memory_gib": Bound(0, 79, above=True),
    "budget.matmul_tflops": Bound(0, 600, above=True),
    "budget.bandwidth_gb_s": Bound(0, 2800, above=True),
    "budget.launch_us": Bound(0, 5),
    **_REGENERATION,
    "features.max_gib": Bound(0, 2.0, above=True),
    "features.rows_per_shard": Bound(1, 64, whole=True),
    "prompts.count": Bound(1, "null"),
    "prompts.max_tokens": Bound(1, "null"),
    "validation.count": Bound(1, "null"),
    "validation.max_tokens": Bound(1, "null"),
    "baselines.lookup.longest": Bound(1, 3, whole=True),
    "baselines.lookup.shortest": Bound(1, 1, whole=True),
    "callbacks.acceptance.every": Bound(1, 100),
    "callbacks.acceptance.decode_every": Bound(1, 400),
    "callbacks.acceptance.num_decode": Bound(0, 4),
    "callbacks.acceptance.max_new_tokens": Bound(1, 128),
    "callbacks.acceptance.batch_size": Bound(1, 16),
    "callbacks.average.decay": Bound(0, 0.999, high=1),
    "callbacks.checkpoints.every": Bound(1, 200),
    "callbacks.checkpoints.keep": Bound(-1, 1),
    "decoding.max_new_tokens": Bound(2, 128),
    "decoding.batch_sizes": Bound(1, 1),
    "decoding.temperatures": Bound(0, 0.0),
    "decoding.top_k": Bound(1, 50, whole=True),
    "decoding.top_p": Bound(0, 0.95, high=1, above=True),
    "decoding.min_p": Bound(0, 0.05, high=1),
    "decoding.verifier.threshold": Bound(0, 0.3, high=1),
    "decoding.verifier.num_nodes": Bound(1, 16, whole=True),
    "decoding.verifier.max_nodes": Bound(1, 64, whole=True),
    "trainer.log_every_n_steps": Bound(1, 10),
}
PRETRAINING = {
    "task.vocab_size": Bound(267, 4096),  # the bytes and the special tokens
    "task.length": Bound(2, 512),
    "task.batch_size": Bound(1, 8),
}
CHOICES = {
    "device": ("cpu", "cuda"),
    "compile": ("inductor", "aot_eager", "eager"),
    "matmul": ("highest", "high", "medium"),
    "target.dtype": ("float32", "bfloat16", "float16"),
    "objective.labels": ("data", "target"),
    "objective.normalise": ("weights", "tokens", "blocks", "sequences"),
    "data.long": ("cut", "split"),
    "data.on_bad": ("raise", "skip"),
    "data.prompts.on_bad": ("raise", "skip"),
    "prompts.on_bad": ("raise", "skip"),
    "validation.on_bad": ("raise", "skip"),
    "logger.wandb.mode": ("online", "offline", "disabled"),
    "trainer.accelerator": ("cpu", "gpu", "cuda"),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
}
_CUTS = ("top_k", "top_p", "min_p")
_BUDGET = ("memory_gib", "matmul_tflops", "bandwidth_gb_s")
NULLABLE = (
    "compile",
    *("clip", "count", "max_tokens", "block_size", "resume", "gamma", "experts", "name", "revision"),
    *("init_from", "convolution"),
    *_CUTS,
    *_BUDGET,
)
