"""Our draft as an assistant of transformers' own DFlash decoding.

    assistant = DFlashAssistant.from_pretrained("FOLDER")
    target.generate(ids, assistant_model=assistant, speculation_type="dflash")

``generate`` (transformers 5.23, ``DFlashTokenCandidateGenerator``) taps the target's layers, embeds the block, keeps
the cache and drops the block's entries from it each round; it decodes one sequence at a time. The draft's own layers
run here over that cache.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from dflash.draft.draft import Draft
from dflash.draft.layers import Attend
from dflash.draft.rope import Rotary, rope_frequencies
from dflash.draft.shape import DraftShape
from dflash.hub.assistant_format import MODEL_TYPE, Assistant
from dflash.hub.convert import read_folder
from dflash.hub.folder import examine, is_draft_folder
from dflash.hub.keys import complain


class DFlashAssistantConfig(PreTrainedConfig):
    """The keys of ``assistant_format``, as transformers wants them; layer_types and sliding_window size its cache."""

    model_type = MODEL_TYPE
    block_size: int = 2
    mask_token_id: int = 0
    target_layer_ids: list[int] | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    num_hidden_layers: int = 1
    max_position_embeddings: int = 1
    rope_parameters: dict | None = None

    def shape(self) -> DraftShape:
        """Raises ValueError that lists every key that is missing, unknown or unfit."""
        known = Assistant().from_config(self.to_dict())
        complain("the assistant's configuration", known.findings)
        return known.shape


class DFlashAssistant(PreTrainedModel):
    """Layers of ``Draft`` over transformers' cache: tensor names and numbers are the draft's own."""

    config_class = DFlashAssistantConfig
    base_model_prefix = ""
    main_input_name = "noise_embeds"

    def __init__(self, config: DFlashAssistantConfig):
        super().__init__(config)
        draft = Draft(config.shape())
        self.fc, self.hidden_norm, self.layers, self.norm = draft.fc, draft.hidden_norm, draft.layers, draft.norm
        self.rotary = draft.rotary
        self.post_init()

    @classmethod
    def from_pretrained(cls, path, *arguments, **options):
        """As in transformers; but a folder with a missing, extra or misshapen tensor is refused, not filled in."""
        if is_draft_folder(path):
            complain(f"draft folder {Path(path)}", examine(path).findings)
        return super().from_pretrained(path, *arguments, **options)

    def _init_weights(self, module) -> None:
        """Called while loading, too, where the one buffer that is in no file has to be computed again."""
        if isinstance(module, Rotary):
            parameters, width = self.config.rope_parameters, self.config.head_dim
            with torch.no_grad():
                frequencies, _ = rope_frequencies(parameters, head_dim=width)
                module.frequencies.copy_(frequencies)

    def forward(
        self,
        noise_embeds: Tensor,
        context_hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **_,
    ) -> BaseModelOutputWithPast:
        """Hidden states of one block.

        noise_embeds [1, K, H]; context_hidden_states [1, n, T*H], the n tokens accepted since the last call;
        position_ids [1, n + K]; attention_mask [1, S + K], 0 at padding, where S counts all context so far.
        """
        new, weight = context_hidden_states.shape[1], self.fc.weight
        context = self.hidden_norm(self.fc(context_hidden_states.to(weight.dtype)))
        rope = self.rotary(position_ids)
        context_rope, block_rope = (tuple(part[:, piece] for part in rope) for piece in (slice(new), slice(new, None)))
        hidden = noise_embeds.to(weight.dtype)
        for i, layer in enumerate(self.layers):
            context_kv = layer.self_attn.keys_values(context, context_rope)
            attend = attend_over(past_key_values, i, context_kv, window=layer.window, padding=attention_mask)
            hidden = layer(hidden, block_rope, attend)
        hidden = self.norm(hidden).to(noise_embeds.dtype)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


def attend_over(
    cache: Cache | None, layer: int, context: tuple[Tensor, Tensor], *, window: int | None, padding: Tensor | None
) -> Attend:
    """A layer's attention over its cache, the new ``context`` keys and values, and the block's own."""

    def attend(query_BKND: Tensor, block: tuple[Tensor, Tensor]) -> Tensor:
        key, value = (torch.cat(pair, dim=1).transpose(1, 2) for pair in zip(context, block, strict=True))
        if cache is not None:
            key, value = cache.update(key, value, layer)
        seen = visible(query_BKND.shape[1], key.shape[2], window=window, padding=padding, device=key.device)
        query = query_BKND.transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True).transpose(1, 2)

    return attend


def visible(
    num_slots: int, num_keys: int, *, window: int | None, padding: Tensor | None, device: torch.device
) -> Tensor:
    """bool [1, 1, K, L]: what each slot sees of the last L positions, of which its block is the last K.

    Its own block whole, and context from its own position less (window - 1) on; padding never.
    """
    index = torch.arange(num_keys, device=device)
    first = num_keys - num_slots
    slot = index[first:, None]
    seen = (index >= first) | (slot - index < (num_keys if window is None else window))
    if padding is not None:
        seen = seen & padding[:, None, None, -num_keys:].bool()
    return seen.expand(1, 1, num_slots, num_keys)


def load_assistant(path: str | Path) -> DFlashAssistant:
    """The assistant for a draft folder of any format, in eval mode, in the types it is stored in.

    Raises ValueError that lists everything wrong with the folder.
    """
    bundle = read_folder(path)
    dtype = bundle.weights["fc.weight"].dtype
    values = Assistant().to_config(bundle.shape, bundle.facts, dtype=str(dtype).removeprefix("torch."))
    assistant = DFlashAssistant(DFlashAssistantConfig(**values))
    assistant.load_state_dict(bundle.weights, assign=True)
    return assistant.eval()
