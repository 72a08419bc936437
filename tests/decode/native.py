"""Our draft behind the interface that transformers' own DFlash generation asks of an assistant.

Written out plainly over transformers' cache, so that nothing of our sessions takes part: an oracle for them.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3Config

from dflash.draft.draft import Draft
from dflash.target.target import Target


class NativeAssistant(nn.Module):
    """Layers see everything in the cache up to their window, and their own block whole."""

    def __init__(self, draft: Draft, *, block_size: int):
        super().__init__()
        self.draft = draft
        self.block_size = block_size
        self.device = torch.device("cpu")
        self.config = Qwen3Config(num_hidden_layers=draft.shape.depth)
        self.config.target_layer_ids = list(draft.shape.taps)
        self.config.block_size = block_size
        self.config.mask_token_id = draft.shape.mask_token_id

    def forward(self, noise_embeds, context_hidden_states, position_ids, attention_mask, past_key_values):
        draft = self.draft
        context = draft.hidden_norm(draft.fc(context_hidden_states))
        new, K = context.shape[1], noise_embeds.shape[1]
        rope = draft.rotary(position_ids)
        positions = torch.arange(int(position_ids[0, -1]) + 1)
        block = positions[-K:]
        hidden = noise_embeds
        for i, layer in enumerate(draft.layers):
            attention = layer.self_attn
            x = layer.input_layernorm(hidden)
            both = torch.cat([context, x], dim=1)
            key = turn(attention.k_norm(heads(attention.k_proj(both), attention.head_dim)), rope)
            value = heads(attention.v_proj(both), attention.head_dim)
            key, value = past_key_values.update(key.transpose(1, 2), value.transpose(1, 2), i)
            assert key.shape[2] == len(positions)
            block_rope = tuple(part[:, new:] for part in rope)
            query = turn(attention.q_norm(heads(attention.q_proj(x), attention.head_dim)), block_rope)
            window = layer.window if layer.window is not None else len(positions)
            seen = (positions >= block[:, None] - (window - 1)) | (positions >= block[0])
            out = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=seen, enable_gqa=True)
            hidden = hidden + attention.o_proj(out.transpose(1, 2).flatten(-2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return SimpleNamespace(last_hidden_state=draft.norm(hidden))


def native_generate(target: Target, draft: Draft, prompt: list[int], *, block_size: int, max_new_tokens: int):
    """(generated tokens, tokens gained in each round): transformers' generate with ``speculation_type="dflash"``.

    Rounds are counted at the target's forward: what the next one is given beyond the last is what was gained.
    """
    starts = []

    def note(module, args, kwargs):
        ids = kwargs["input_ids"]
        starts.append(int(kwargs["position_ids"][0, 0]) + (ids.shape[1] if not starts else 0))

    hook = target.model.register_forward_pre_hook(note, with_kwargs=True)
    ids = torch.tensor([prompt])
    try:
        out = target.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=NativeAssistant(draft, block_size=block_size),
            speculation_type="dflash",
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=0,
        )
    finally:
        hook.remove()
    ends = [*starts[1:], out.shape[1] - 1]  # each pass starts at its anchor; the last token is no anchor yet
    return out[0, len(prompt) :].tolist(), tuple(b - a for a, b in pairwise(ends))


def heads(x: Tensor, head_dim: int) -> Tensor:
    return x.unflatten(-1, (-1, head_dim))


def turn(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions as Llama writes them: x * cos + rotate_half(x) * sin, on [B, Q, heads, head_dim]."""
    cos, sin = (torch.cat([part, part], dim=-1)[:, :, None] for part in rope)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
