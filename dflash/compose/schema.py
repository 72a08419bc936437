"""The top level of all configurations, as Hydra types it: a wrong key or type ends composition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf


@dataclass
class TrainSchema:
    """Top-level keys of train.py; groups are typed by what they build."""

    task: Any = None
    name: str = "dflash"
    seed: int = 0
    steps: int = 1
    block_size: int = 8
    num_anchors: int = 1
    accumulate: int = 1
    clip: float | None = 1.0
    eval_every: int = 1
    checkpoint_every: int = 1
    resume: str | None = None
    init_from: str | None = None
    activation_checkpointing: bool = False
    compile: str | None = None
    matmul: str = "highest"
    measure_untrained: bool = True
    plan: bool = False
    device: str = "cpu"
    target: Any = None
    target_facts: Any = None
    draft: Any = None
    objective: Any = None
    anchors: Any = None
    data: Any = None
    features: Any = None
    optimizer: Any = None
    schedule: Any = None
    trainer: Any = None
    budget: Any = None
    attention: Any = None
    callbacks: Any = None
    logger: Any = None
    prompts: Any = None
    validation: Any = None
    decoding: Any = None
    baselines: Any = None
    paths: Any = None


@dataclass
class EvaluateSchema:
    """Top-level keys of evaluate.py."""

    name: str = "evaluate"
    checkpoint: str = "latest"
    seed: int = 0
    block_size: int | None = None
    device: str = "cpu"
    measure_untrained: bool = False
    target: Any = None
    target_facts: Any = None
    prompts: Any = None
    decoding: Any = None
    baselines: Any = None
    paths: Any = None


@dataclass
class RegenerateSchema:
    """Top-level keys of python -m dflash.data regenerate."""

    out: str = "???"
    count: int | None = None
    max_prompt_tokens: int | None = None
    max_new_tokens: int = 1
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0
    device: str = "cpu"
    shard_size: int = 256
    keep_truncated: bool = True
    accept_failures: bool = False
    give_up_after: int = 64
    target: Any = None
    target_facts: Any = None
    data: Any = None
    engine: Any = None
    paths: Any = None


def register() -> None:
    """Make the schemas and the resolver ``times`` known to Hydra; once, before composing."""
    ConfigStore.instance().store(name="train_schema", node=TrainSchema)
    ConfigStore.instance().store(name="evaluate_schema", node=EvaluateSchema)
    ConfigStore.instance().store(name="regenerate_schema", node=RegenerateSchema)
    OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)
