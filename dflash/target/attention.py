"""Attention of decoding targets in one fused call, for families with sinks (gpt-oss) and without.

transformers computes gpt-oss attention eagerly only: keys repeated for every query head, scores in memory, a dozen
small operations a layer. Here query heads that share keys become one longer query, and torch's fused attention does
the rest. A sink is one more term of the softmax's denominator: on a CPU the kernel's log-sum-exp gives the factor by
which it shrinks the output; elsewhere it becomes one more key of zeros, whose score is the sink.
``target.attention=fused`` chooses all this.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

FUSED = "fused"  # a name with "flash" in it would send transformers to look for flash kernels


def fused_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    **_,
) -> tuple[Tensor, None]:
    """query [B, N, Q, D], key and value [B, G, S, D], attention_mask additive [B, 1, Q, S], s_aux: sinks [N] or None
    -> ([B, Q, N, D], None). For inference: no dropout. ValueError for soft-capped scores (Gemma 2)."""
    refuse_cap(softcap, FUSED)
    B, N, Q, D = query.shape
    if Q > 1 and key.shape[1] == 1 and query.device.type == "cpu":
        # Heads then share keys by their strides and the mask as it is, for the same numbers. At one token a pass the
        # keys take the time: there they are read once for all heads.
        key, value = key.expand(B, N, -1, D), value.expand(B, N, -1, D)
    G = key.shape[1]
    R = N // G
    grouped = query.reshape(B, G, R * Q, D)
    mask = attention_mask.expand(B, 1, Q, -1).unsqueeze(2).expand(B, G, R, Q, -1)
    if s_aux is None:
        out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask.flatten(2, 3), scale=scaling)
    else:
        with_sinks = _rescaled if query.device.type == "cpu" else _padded
        out = with_sinks(grouped, key, value, mask, s_aux.to(query.dtype).view(1, G, R, 1), scaling)
    return out.view(B, N, Q, D).transpose(1, 2).contiguous(), None


def _rescaled(
    query_BGQD: Tensor, key: Tensor, value: Tensor, mask_BGRQS: Tensor, sinks: Tensor, scale: float
) -> Tensor:
    """Attention without sinks, times e^lse / (e^lse + e^sink): keys and values are not copied."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_BGQD, key, value, attn_mask=mask_BGRQS.flatten(2, 3), scale=scale
    )
    rows = mask_BGRQS.shape[:-1]
    return with_sinks(out.view(*rows, -1), lse.view(rows), sinks).flatten(2, 3)


def _padded(query_BGQD: Tensor, key: Tensor, value: Tensor, mask_BGRQS: Tensor, sinks: Tensor, scale: float) -> Tensor:
    """One more key of zeros and value of zeros: its score is what the mask adds, the sink of the query's head."""
    key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
    mask = F.pad(mask_BGRQS, (0, 1))
    mask[..., -1] = sinks
    return F.scaled_dot_product_attention(query_BGQD, key, value, attn_mask=mask.flatten(2, 3), scale=scale)


def with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Attention's output [..., D] as if each head's sink were one more score with a value of zeros: times
    e^lse / (e^lse + e^sink), with the log-sum-exp [...] of the scores that there are."""
    return out * torch.sigmoid(lse - sinks)[..., None].to(out.dtype)


def refuse_cap(softcap: float | None, attention: str) -> None:
    """ValueError for scores that are soft-capped, between score and softmax, where a fused call lets nobody in."""
    if softcap is not None:
        raise ValueError(f"target.attention={attention}: it cannot cap scores at {softcap}; use target.attention=eager")


def register_attention(name: str, attend: Callable[..., tuple[Tensor, None]]) -> None:
    """Make ``attend`` known to transformers as ``name``, with masks as eager attention takes them."""
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, eager_mask)


def register_fused() -> None:
    """Make ``fused_attention`` known under its name."""
    register_attention(FUSED, fused_attention)
