"""What a loaded target really consists of and runs with, as transformers settled it: for reports."""

from __future__ import annotations

from collections import Counter

from dflash.target.attention import FUSED
from dflash.target.flex import FLEX
from dflash.target.target import Target

GIB = 2**30


def weights_format(target: Target) -> str:
    """Bytes of the weights by dtype, and the quantisation that the model was left in, if any."""
    sizes: Counter[str] = Counter()
    for weight in target.model.parameters():
        sizes[str(weight.dtype).removeprefix("torch.")] += weight.nbytes
    told = ", ".join(f"{dtype} {size / GIB:.3g} GiB" for dtype, size in sizes.most_common())
    quantised = target.model.config.to_dict().get("quantization_config")
    return told if quantised is None else f"{told}, {quantised['quant_method']}"


def implementations(target: Target) -> dict[str, str]:
    """What computes attention and the experts of a mixture ("eager": the model's own code), and whether decoding steps
    run from recordings."""
    config = target.config
    both = {FLEX: f"{FLEX} for packed rows, {FUSED} for sessions"}
    chosen = {"attention": both.get(config._attn_implementation, config._attn_implementation)}
    if config._experts_implementation is not None:
        chosen["experts"] = config._experts_implementation
    return chosen | {"decoding steps": "eager" if target.recorder is None else target.recorder.name}
