"""The DFlash draft (arXiv 2602.06036, section 4.1): proposes a whole block in one pass over the target's features.

It knows neither the target nor the loss: embedded noise blocks and tapped features come in, hidden states go out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dflash.draft.attention import BlockAttention, TwoPiece
from dflash.draft.convolution import ZeroLinear
from dflash.draft.fusion import TapMixture, TapNorms
from dflash.draft.heads.head import Embed, Head
from dflash.draft.layers import DraftLayer
from dflash.draft.mask import BlockGeometry
from dflash.draft.norm import Norm
from dflash.draft.rope import Rotary
from dflash.draft.session import DraftSession
from dflash.draft.shape import DraftShape
from dflash.replay import Replay
from dflash.types import AnchoredBlocks


class Draft(nn.Module):
    """Trainable: fc, hidden_norm, layers, norm, and a head where the shape has one. Embedding and lm_head are the
    target's and stay outside.

    attention: how training attention is computed (never changes what is computed). checkpoint_layers: whether training
    keeps each layer's input alone and computes the rest again for the gradient. head: None, or what links the slots
    of a block behind lm_head.
    """

    def __init__(self, shape: DraftShape, *, attention: BlockAttention | None = None):
        super().__init__()
        self.shape = shape
        self.attention = attention if attention is not None else TwoPiece()
        self.checkpoint_layers = False
        num_taps, hidden = len(shape.taps), shape.hidden_size
        self.tap_norms = TapNorms(num_taps, hidden, eps=shape.rms_norm_eps) if shape.tap_norm else nn.Identity()
        if shape.mixture:
            self.fc = TapMixture(shape.depth, num_taps)
        else:
            self.fc = nn.Linear(num_taps * hidden, hidden, bias=False)
        self.hidden_norm = Norm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.layers = nn.ModuleList(DraftLayer(shape, window=window) for window in shape.layout)
        self.norm = Norm(shape.hidden_size, eps=shape.rms_norm_eps)
        self.rotary = Rotary(shape.rope_parameters, head_dim=shape.head_dim)
        self.apply(_initialise)
        for layer in self.layers if shape.separate_context else ():
            layer.self_attn.separate_context()
        # Built last and from zeros: with and without a head, equal seeds give equal bodies.
        self.head: Head | None = None if shape.head is None else shape.head.build()

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @property
    def num_head_parameters(self) -> int:
        return 0 if self.head is None else sum(p.numel() for p in self.head.parameters())

    def fuse(self, taps_BSTH: Tensor) -> tuple[Tensor, ...]:
        """Context features C = RMSNorm(W_fc [h1; ...; hT]): [B, S, T, H] -> [B, S, H] for each layer, the same for all
        unless each has a mixture of its own."""
        taps_BSTH = self.tap_norms(taps_BSTH.to(self.fc.weight.dtype))
        fused = self.hidden_norm(self.fc(taps_BSTH.flatten(-2)))
        return fused.unbind(-2) if self.shape.mixture else (fused,) * self.shape.depth

    def forward(self, noise_BAKH: Tensor, taps_BSTH: Tensor, geometry: BlockGeometry) -> Tensor:
        """Hidden states of every slot after the final norm, [B, A, K, H]; slot k predicts the token at anchor + k."""
        contexts = self.fuse(taps_BSTH)
        context_rope = self.rotary(geometry.positions_BS)
        block_rope = self.rotary(geometry.positions_BAK)
        geometry = replace(geometry, causal=self.shape.causal or self.shape.left_to_right)
        masks = self.attention.prepare(geometry, set(self.shape.layout))
        hidden = noise_BAKH.to(self.fc.weight.dtype)
        for layer, context_BSH in zip(self.layers, contexts, strict=True):
            inputs = hidden, block_rope, context_BSH, context_rope, self._attend_under(masks[layer.window])
            hidden = _again(layer.over_context, inputs) if self.checkpoint_layers else layer.over_context(*inputs)
        hidden = self.norm(hidden)
        # What has read tokens up to slot k - 1 foretells slot k; slot 0 is given.
        return torch.cat([hidden[..., :1, :], hidden[..., :-1, :]], dim=-2) if self.shape.left_to_right else hidden

    def inputs(self, blocks: AnchoredBlocks) -> Tensor:
        """long [B, A, K], what the slots are given in training: the anchor and masks or, left to right, the tokens."""
        return blocks.labels_BAK if self.shape.left_to_right else blocks.input_ids_BAK

    def correct(self, logits_MPV: Tensor, hidden_MPH: Tensor, previous_MP: Tensor, embed: Embed) -> Tensor:
        """Logits of the P slots behind the anchor with the head's correction, given the token before each slot."""
        if self.head is None or logits_MPV.shape[1] == 0:
            return logits_MPV
        return self.head(logits_MPV, hidden_MPH, previous_MP, embed)

    def open(
        self, batch_size: int, *, capacity: int, extension: Replay | None = None, room: int | None = None
    ) -> DraftSession:
        """A decoding session of ``batch_size`` empty rows. extension: see there. room: as in ``Target.open``."""
        room = room or batch_size
        return DraftSession(self, batch_size=batch_size, capacity=capacity, extension=extension, room=room)

    def _attend_under(self, mask):
        return lambda query, context, block: self.attention(query, context, block, mask)


def _again(layer: Callable[..., Tensor], inputs: tuple) -> Tensor:
    """The layer's output, whose insides are computed again for the gradient instead of being kept."""
    return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)


def _initialise(module: nn.Module) -> None:
    """Normal 0.02 for matrices, zero biases: transformers' initialisation, so that drafts compare across trainers."""
    if isinstance(module, nn.Linear) and not isinstance(module, ZeroLinear):
        torch.nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
