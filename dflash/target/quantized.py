"""Checkpoints whose experts are stored in four bits (MXFP4, as gpt-oss is published): kept so, or unpacked when loaded.

transformers unpacks by itself where it finds no kernels, but asks for packages even for that, and says in a log only
what it did. Here it is an option, ``target.weights``, and the report names the outcome.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from transformers import Mxfp4Config, PreTrainedConfig
from transformers.utils import is_kernels_available, is_triton_available

if TYPE_CHECKING:
    from dflash.target.target import Target

UNPACKED, PACKED, AUTO = "unpacked", "mxfp4", "auto"
WEIGHTS = (UNPACKED, PACKED, AUTO)
METHOD = "mxfp4"
PACKED_BITS = 4.25  # of a weight: four, and eight of a scale that 32 of them share
OLDEST_TRITON = "3.4.0"
LEAST_CAPABILITY = (7, 5)

logger = logging.getLogger(__name__)


def loading_options(config: PreTrainedConfig, weights: str, device: str, *, name: str) -> dict[str, Any]:
    """What ``from_pretrained`` must be told for the checkpoint ``name`` of this configuration; nothing where it is not
    stored in MXFP4.

    weights: "unpacked" to the dtype of the target, "mxfp4" as they are stored, or "auto": as they are stored where
    that can be computed with, else unpacked. Raises ValueError where "mxfp4" is asked for and cannot be had.
    """
    if _method(config) != METHOD:
        if weights == PACKED:
            raise ValueError(f"target.weights={weights}: {name} is not stored in MXFP4; use target.weights=unpacked")
        return {}
    missing = missing_for_packed(device)
    if weights == PACKED and missing:
        raise ValueError(
            f"target.weights={weights}: it needs {', '.join(missing)}; supply that, or use target.weights=unpacked"
        )
    if weights == AUTO and missing:
        logger.warning("target.weights=%s: %s is unpacked; to keep it, supply %s", AUTO, name, ", ".join(missing))
    if weights == UNPACKED or missing:
        return {"quantization_config": Mxfp4Config(dequantize=True)}
    return {"device_map": {"": device}}  # packed weights are laid out for a device as they are loaded


def packed_savings(target: Target) -> int:
    """Bytes by which a target that is kept in MXFP4 is smaller than a model of its shape in the target's dtype."""
    if _method(target.model.config) != METHOD:
        return 0
    experts = (block.mlp.experts for block in target.blocks)
    weights = (p for module in experts for name, p in module.named_parameters() if not name.endswith("_bias"))
    return sum(p.nbytes - int(p.numel() * PACKED_BITS / 8) for p in weights)


def missing_for_packed(device: str) -> list[str]:
    """What computing with MXFP4 weights on ``device`` lacks, in words."""
    missing = []
    if not device.startswith("cuda"):
        missing.append("a CUDA GPU (target.device)")
    elif torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        missing.append(f"a GPU of compute capability {'.'.join(map(str, LEAST_CAPABILITY))}")
    if not is_triton_available(OLDEST_TRITON):
        missing.append(f"the package triton>={OLDEST_TRITON}")
    if not is_kernels_available():
        missing.append("the package kernels")
    if find_spec("accelerate") is None:
        missing.append("the package accelerate")
    return missing


def _method(config: PreTrainedConfig) -> str | None:
    """How the checkpoint is quantised; None: not."""
    stored = config.to_dict().get("quantization_config")
    return None if stored is None else str(stored["quant_method"])
