"""Checks of how a run is computed: attention, compilation, sharding. What is not possible here is an error, never a
silent fallback.

Part of ``check``; nothing heavy is imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

FLEX = "dflash.draft.attention.Flex"
NO_HEAD = "dflash.draft.heads.shapes.no_head"
SHARDS = "ModelParallelStrategy"
COMPILERS = ("g++", "clang++", "c++")


def find_trainer(config: Mapping[str, Any]) -> Iterator[str]:
    """Findings of train.py's resolved configuration."""
    device, backend = config["device"], config["compile"]
    if (config.get("attention") or {}).get("_target_") == FLEX and device == "cpu":
        yield (
            "attention=flex with device=cpu: flex attention has no gradient on a processor; choose attention=dense or "
            "attention=two_pieces"
        )
    if backend == "inductor" and device == "cpu" and not any(map(shutil.which, COMPILERS)):
        yield (
            f"compile=inductor with device=cpu: needs a C++ compiler and finds none of {', '.join(COMPILERS)}; install "
            "one, or leave compile out"
        )
    strategy = (config.get("trainer") or {}).get("strategy")
    if isinstance(strategy, Mapping) and str(strategy.get("_target_")).endswith(SHARDS):
        yield from _shards(config, strategy)


def find_pretraining(config: Mapping[str, Any]) -> Iterator[str]:
    """Findings of a pre-training of a target, which is computed in one way only."""
    trainer = config.get("trainer") or {}
    if trainer.get("devices", 1) != 1:
        yield (
            f"trainer.devices={trainer['devices']}: pre-training of a target runs on one device; choose trainer=cpu, "
            "gpu, h100 or b200"
        )
    for key, nothing in (("compile", None), ("activation_checkpointing", False)):
        if config[key] != nothing:
            yield f"{key}={config[key]}: concerns drafts, not the pre-training of a target; leave it out"


def _shards(config: Mapping[str, Any], strategy: Mapping[str, Any]) -> Iterator[str]:
    trainer = config["trainer"]
    ranks, key = trainer.get("num_nodes", 1) * trainer["devices"], "trainer.strategy"
    size = strategy.get("data_parallel_size")
    if size != ranks:
        yield (
            f"{key}.data_parallel_size={size}: must be the number of ranks, trainer.devices times nodes; try "
            f"{key}.data_parallel_size={ranks}"
        )
    if strategy.get("tensor_parallel_size") != 1:
        yield (
            f"{key}.tensor_parallel_size={strategy.get('tensor_parallel_size')}: must be 1, the draft is sharded by "
            f"data alone; try {key}.tensor_parallel_size=1"
        )
    if strategy.get("save_distributed_checkpoint") is not False:
        yield (
            f"{key}.save_distributed_checkpoint={strategy.get('save_distributed_checkpoint')}: must be false, since "
            "checkpoints are single files here"
        )
    if config["compile"] is not None:
        yield f"compile={config['compile']}: not under FSDP2; leave compile out, or choose DDP, as in trainer=h100x8"
    if (config.get("callbacks") or {}).get("average") is not None:
        yield "callbacks.average: not under FSDP2, whose ranks hold shards; leave it out, or choose trainer=h100x8"
    head = (config.get("draft") or {}).get("head") or {}
    if head.get("_target_", NO_HEAD) != NO_HEAD:
        yield "draft.head: not under FSDP2, where the loss would read shards; choose heads=none or trainer=h100x8"
