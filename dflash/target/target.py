"""The frozen target: a plain object around a causal language model of transformers.

Plain on purpose: it is no nn.Module, so it stays out of state_dict, checkpoints, ``.train()``, precision plugins and
distributed broadcasts. It embeds, extracts features, gives logits and opens decoding sessions.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dflash.target.cache import SlotCache
from dflash.target.masks import additive, packed_causal
from dflash.target.session import TargetSession
from dflash.types import TargetFeatures, TokenBatch

# Settings of families whose logits are not simply lm_head(hidden); decoding them needs more than this class does.
_UNSUPPORTED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "embedding_multiplier")


@dataclass(frozen=True)
class TargetDims:
    """The shape of a target, as far as a draft is built from it. ``rope_parameters`` in transformers' form."""

    hidden_size: int
    num_layers: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_parameters: dict
    max_position_embeddings: int
    attention_bias: bool


class Target:
    """A frozen causal language model, in eval mode and its own dtype.

    Raises ValueError for architectures whose cache cannot be rolled back or whose logits it cannot reproduce.
    """

    def __init__(self, model: PreTrainedModel, *, name: str):
        config = model.config.get_text_config()
        _check_supported(config, name)
        self.model = model.eval().requires_grad_(False)
        self.config = config
        self.name = name
        self.family = config.model_type
        self.backbone = model.base_model
        self.lm_head = model.get_output_embeddings()
        self.dims = dims_of(config)
        self.layer_types = tuple(config.layer_types) if _has(config, "layer_types") else ()
        window = config.sliding_window if "sliding_attention" in self.layer_types else None
        self.windows = (None,) if window is None else (None, window)

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def __deepcopy__(self, memo) -> Target:
        return self  # frozen and shared: copying modules (EMA) must not copy it

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """sha256 over configuration and weights: what makes two targets the same."""
        return self._fingerprint

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Frozen input embedding: long [...] -> [..., H]."""
        return self.backbone.get_input_embeddings()(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Frozen lm_head over hidden states after a final norm: [..., H] -> [..., V]. Gradient flows to ``hidden``."""
        return self.lm_head(hidden)

    @torch.no_grad()
    def features(self, batch: TokenBatch, taps: tuple[int, ...], *, with_last: bool = False) -> TargetFeatures:
        """One teacher-forced pass over packed rows; documents do not see each other and positions restart with each.

        Autocast is off: training features must equal decoding features, so the target runs in its own dtype.
        """
        with torch.autocast(self.device.type, enabled=False):
            masks = {w: additive(packed_causal(batch.documents_BS, w), self.dtype) for w in self.windows}
            last_BSH, taps_BSTH = self._run(
                batch.ids_BS, positions=batch.positions_BS, masks=masks, cache=None, taps=taps
            )
        return TargetFeatures(taps_BSTH, last_BSH if with_last else None)

    def open(self, batch_size: int, *, capacity: int, taps: tuple[int, ...] = ()) -> TargetSession:
        """A decoding session of ``batch_size`` empty rows, each up to ``capacity`` tokens long."""
        limit = self.dims.max_position_embeddings
        if capacity > limit:
            raise ValueError(
                f"session capacity {capacity} exceeds the {limit} positions of target {self.name}; "
                "shorten the prompts or max_new_tokens"
            )
        return TargetSession(self, batch_size=batch_size, capacity=capacity, taps=taps)

    def run_cached(self, ids_BQ: Tensor, *, positions_BQ: Tensor, masks: dict, cache: SlotCache, taps: tuple):
        """One pass over the slot cache; see ``TargetSession.advance``."""
        return self._run(ids_BQ, positions=positions_BQ, masks=masks, cache=cache, taps=taps)

    def _run(self, ids: Tensor, *, positions: Tensor, masks: dict, cache: SlotCache | None, taps: tuple[int, ...]):
        out = self.backbone(
            input_ids=ids,
            attention_mask=self._named(masks),
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=[tap + 1 for tap in taps] if taps else False,  # entry i + 1: output of layer i
        )
        if not taps:
            return out.last_hidden_state, None
        return out.last_hidden_state, torch.stack([out.hidden_states[tap + 1] for tap in taps], dim=2)

    def _named(self, masks: dict[int | None, Tensor]):
        """Masks by layer type where the family has layer types, else the one mask."""
        if not self.layer_types:
            return masks[None]
        window = self.windows[-1]
        return {"full_attention": masks[None], "sliding_attention": masks[window]}


def _has(config, key: str) -> bool:
    return key in config.to_dict() and config.to_dict()[key] is not None


def _check_supported(config, name: str) -> None:
    unknown = set(config.layer_types) - {"full_attention", "sliding_attention"} if _has(config, "layer_types") else ()
    if unknown:
        raise ValueError(
            f"target {name}: layers of type {', '.join(sorted(unknown))} keep a recurrent state that the slot cache "
            "cannot roll back; choose a target with attention layers only"
        )
    for key in _UNSUPPORTED:
        if _has(config, key) and config.to_dict()[key] != 1.0:
            raise ValueError(f"target {name}: {key}={config.to_dict()[key]} is not supported; choose another target")


def dims_of(config) -> TargetDims:
    """Read the dimensions off a text configuration of transformers."""
    values = config.to_dict()
    heads = values["num_attention_heads"]
    return TargetDims(
        hidden_size=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        vocab_size=values["vocab_size"],
        num_heads=heads,
        num_kv_heads=values["num_key_value_heads"],
        head_dim=values.get("head_dim") or values["hidden_size"] // heads,
        rms_norm_eps=values["rms_norm_eps"],
        rope_parameters=dict(values["rope_parameters"]),
        max_position_embeddings=values["max_position_embeddings"],
        attention_bias=bool(values.get("attention_bias", False)),
    )
