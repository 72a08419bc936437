"""The draft's decoder layer (paper section 4.1): its keys and values are the context's and the block's together.

Weight names are the field's (Qwen3), so that a draft can be served elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dflash.draft.convolution import Convolution, NoConvolution
from dflash.draft.norm import Norm
from dflash.draft.rope import rotate
from dflash.draft.shape import DraftShape

Rope = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]
Attend = Callable[[Tensor, KeyValue], Tensor]  # (query [..., K, N, D], the block's own keys and values) -> [..., N, D]
AttendOver = Callable[[Tensor, KeyValue, KeyValue], Tensor]  # the same, with the context's keys and values in between


class Attention(nn.Module):
    """Projections, QK-norm and RoPE; who attends to whom is the caller's ``attend``."""

    def __init__(self, shape: DraftShape):
        super().__init__()
        D, bias = shape.head_dim, shape.attention_bias
        self.head_dim = D
        self.q_proj = nn.Linear(shape.hidden_size, shape.num_heads * D, bias=bias)
        self.k_proj = nn.Linear(shape.hidden_size, shape.num_kv_heads * D, bias=bias)
        self.v_proj = nn.Linear(shape.hidden_size, shape.num_kv_heads * D, bias=bias)
        self.o_proj = nn.Linear(shape.num_heads * D, shape.hidden_size, bias=bias)
        self.context_k_proj: nn.Linear | None = None  # None: the block's own serve the context, too
        self.context_v_proj: nn.Linear | None = None
        self.q_norm = Norm(D, eps=shape.rms_norm_eps)
        self.k_norm = Norm(D, eps=shape.rms_norm_eps)

    def keys_values(self, x: Tensor, rope: Rope) -> KeyValue:
        """[..., H] -> key, value [..., G, D], of block slots; unless separated, the context's are made alike."""
        return self._keys_values(self.k_proj, self.v_proj, x, rope)

    def context_keys_values(self, context: Tensor, rope: Rope) -> KeyValue:
        """[..., H] -> key, value [..., G, D], of context tokens."""
        if self.context_k_proj is None:
            return self.keys_values(context, rope)
        return self._keys_values(self.context_k_proj, self.context_v_proj, context, rope)

    def separate_context(self) -> None:
        """Give the context projections of its own (DFlare); they start as copies of the block's."""
        self.context_k_proj, self.context_v_proj = _copy_of(self.k_proj), _copy_of(self.v_proj)

    def forward(self, x: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """[..., K, H] -> [..., K, H]."""
        query = rotate(self.q_norm(self._heads(self.q_proj(x))), *_per_head(rope))
        return self.o_proj(attend(query, self.keys_values(x, rope)).flatten(-2))

    def _keys_values(self, k_proj: nn.Linear, v_proj: nn.Linear, x: Tensor, rope: Rope) -> KeyValue:
        return rotate(self.k_norm(self._heads(k_proj(x))), *_per_head(rope)), self._heads(v_proj(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class SwiGLU(nn.Module):
    """Gated MLP."""

    def __init__(self, shape: DraftShape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DraftLayer(nn.Module):
    """Pre-norm layer over block slots. The context enters through its keys and values only: it gets no
    input_layernorm (hidden_norm replaces it), no query, no o_proj and no MLP."""

    def __init__(self, shape: DraftShape, *, window: int | None):
        super().__init__()
        self.window = window
        self.self_attn = Attention(shape)
        self.mlp = SwiGLU(shape)
        self.attention_conv, self.mlp_conv = (_convolution(shape) for _ in range(2))
        self.input_layernorm = Norm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, eps=shape.rms_norm_eps)

    def forward(self, hidden: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """[..., K, H] -> [..., K, H]."""
        x, kernel = self.attention_conv.prepare(self.input_layernorm(hidden))
        hidden = hidden + self.attention_conv.finish(self.self_attn(x, rope, attend), kernel)
        x, kernel = self.mlp_conv.prepare(self.post_attention_layernorm(hidden))
        return hidden + self.mlp_conv.finish(self.mlp(x), kernel)

    def over_context(
        self, hidden: Tensor, rope: Rope, context: Tensor, context_rope: Rope, attend: AttendOver
    ) -> Tensor:
        """As ``forward``, over a context [..., S, H] that this layer projects itself: in training, all that one layer
        does, and so the unit to shard and to compute again."""
        seen = self.self_attn.context_keys_values(context, context_rope)
        # forward itself and not a call: hooks of sharding belong to the outermost call
        return self.forward(hidden, rope, lambda query, block: attend(query, seen, block))


def _convolution(shape: DraftShape) -> Convolution | NoConvolution:
    if shape.convolution is None:
        return NoConvolution()
    return Convolution(shape.hidden_size, group_size=shape.convolution)


def _copy_of(linear: nn.Linear) -> nn.Linear:
    """The same weights once more. A deep copy of fake tensors (``plan=true``) would be of a fake mode of its own."""
    with torch.random.fork_rng(devices=[]):  # equal seeds give equal bodies, with such copies and without
        copy = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    copy.load_state_dict(linear.state_dict())
    return copy


def _per_head(rope: Rope) -> Rope:
    """cos and sin [..., D/2] broadcast over the head axis."""
    return rope[0].unsqueeze(-2), rope[1].unsqueeze(-2)
