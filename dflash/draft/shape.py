"""The shape of a draft: plain values, enough to build it, to store it and to serve it elsewhere."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Protocol

from dflash.draft.heads.shapes import HeadRule, HeadShape, head_from_dict, head_to_dict, no_head
from dflash.draft.layout import LayoutRule
from dflash.draft.taps import TapRule, check_taps


class Dims(Protocol):
    """What a draft takes from its target (``target.TargetDims``)."""

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


@dataclass(frozen=True)
class DraftShape:
    """Plain values only, so that it may enter a checkpoint. ``layout``: window per layer, None for full attention.
    ``left_to_right``: the same layers draft a block token by token instead of at once. ``causal``: drafted at once, and
    yet no slot sees those behind it. ``convolution``: channels that share a coefficient, None for none. ``tap_norm``,
    ``mixture``: see ``fusion``. ``separate_context``: the context has key and value projections of its own.

    Behind mask_token_id stand variations of the published draft; ``to_dict`` leaves out those not taken, so that the
    plain draft's form is the same in all versions.
    """

    hidden_size: int
    intermediate_size: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention_bias: bool
    rms_norm_eps: float
    rope_parameters: dict
    max_position_embeddings: int
    num_target_layers: int
    taps: tuple[int, ...]
    layout: tuple[int | None, ...]
    block_size: int
    mask_token_id: int
    head: HeadShape | None = None
    left_to_right: bool = False
    causal: bool = False
    convolution: int | None = None
    tap_norm: bool = False
    mixture: bool = False
    separate_context: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; ``DraftShape.from_dict`` is its inverse."""
        values = asdict(self) | {"taps": list(self.taps), "layout": list(self.layout), "head": head_to_dict(self.head)}
        return {key: value for key, value in values.items() if key not in VARIATIONS or value != VARIATIONS[key]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DraftShape:
        """Raises ValueError for variations that this version does not know."""
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"this draft has {', '.join(sorted(unknown))}, which this version does not know; update it"
            )
        known = {"taps": tuple(values["taps"]), "layout": tuple(values["layout"])}
        return cls(**values | known | {"head": head_from_dict(values.get("head"))})

    @property
    def variations(self) -> dict[str, Any]:
        """Key -> value of what sets it apart from the published draft."""
        return {key: value for key, value in self.to_dict().items() if key in VARIATIONS}


VARIATIONS = {field.name: field.default for field in fields(DraftShape) if field.default is not MISSING}


def shape_draft(
    dims: Dims,
    *,
    depth: int,
    block_size: int,
    taps: TapRule,
    layout: LayoutRule,
    mask_token_id: int,
    mlp_ratio: float = 3.0,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    attention_bias: bool | None = None,
    head: HeadRule | None = None,
    left_to_right: bool = False,
    causal: bool = False,
    convolution: int | None = None,
    tap_norm: bool = False,
    mixture: bool = False,
    separate_context: bool = False,
) -> DraftShape:
    """A draft for a target of these dimensions; heads, head_dim and biases are the target's unless given.

    The hidden size is the target's: the draft shares its embedding and lm_head. ``mlp_ratio`` times that is the MLP's
    width. Raises ValueError with key, value, bound and fix.
    """
    heads = num_heads or dims.num_heads
    kv_heads = num_kv_heads or (num_heads and min(num_heads, dims.num_kv_heads)) or dims.num_kv_heads
    for key, value in {"draft.depth": depth, "block_size": block_size, "draft.num_heads": heads}.items():
        if value < 1:
            raise ValueError(f"{key}={value}: must be at least 1")
    if heads % kv_heads:
        raise ValueError(
            f"draft.num_kv_heads={kv_heads} does not divide draft.num_heads={heads}; choose one of "
            f"{[n for n in range(1, heads + 1) if heads % n == 0]}"
        )
    width = head_dim or dims.head_dim
    if width % 2:
        raise ValueError(f"draft.head_dim={width}: rotary positions need an even number")
    head_shape = (head if head is not None else no_head())(dims.hidden_size, dims.vocab_size)
    if left_to_right and head_shape is not None:
        raise ValueError(
            f"draft.left_to_right=true with a {head_shape.name} head: heads tell slots drafted at once what stands "
            "before them, which such a draft knows; choose heads=none"
        )
    _check_convolution(convolution, hidden_size=dims.hidden_size, left_to_right=left_to_right)
    intermediate = round(mlp_ratio * dims.hidden_size)
    if intermediate < 1:
        raise ValueError(f"draft.mlp_ratio={mlp_ratio}: must be above 0")
    return DraftShape(
        hidden_size=dims.hidden_size,
        intermediate_size=intermediate,
        depth=depth,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width,
        attention_bias=dims.attention_bias if attention_bias is None else attention_bias,
        rms_norm_eps=dims.rms_norm_eps,
        rope_parameters=dict(dims.rope_parameters),
        max_position_embeddings=dims.max_position_embeddings,
        num_target_layers=dims.num_layers,
        taps=check_taps(taps(dims.num_layers), dims.num_layers),
        layout=layout(depth),
        block_size=block_size,
        mask_token_id=mask_token_id,
        head=head_shape,
        left_to_right=left_to_right,
        causal=causal,
        convolution=convolution,
        tap_norm=tap_norm,
        mixture=mixture,
        separate_context=separate_context,
    )


def _check_convolution(group_size: int | None, *, hidden_size: int, left_to_right: bool) -> None:
    if group_size is None:
        return
    if group_size < 1 or hidden_size % group_size:
        raise ValueError(
            f"draft.convolution={group_size}: must divide the target's hidden size of {hidden_size}; choose one of "
            f"{[n for n in (1, 2, 4, 8, 16, 32) if hidden_size % n == 0]}"
        )
    if left_to_right:
        raise ValueError(
            f"draft.convolution={group_size} with draft.left_to_right=true: slots drafted one by one have no "
            "neighbours; choose mixing=bidirectional"
        )
