"""What each layer of a target keeps between passes, asked of the cache that transformers would give it.

Decides how a session undoes rejected tokens: keys and values are written over, recurrent states are restored and
replayed. Nothing here knows a family by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

STATELESS_TYPES = ("moe", "mlp")
MASKED_TYPES = ("full_attention", "sliding_attention")  # what ``masks`` can build; other attention sees by other rules


@dataclass(frozen=True)
class LayerPlan:
    """types: the layers' types as the backbone names its masks, () where it takes one mask for all.

    windows: the masks a pass needs, None for full attention. layer_windows: the one of each layer. recurrent: indices
    of the layers that keep a state.
    """

    types: tuple[str, ...]
    windows: tuple[int | None, ...]
    layer_windows: tuple[int | None, ...]
    recurrent: tuple[int, ...]

    @property
    def window(self) -> int | None:
        """Of the sliding layers; None where there are none."""
        return self.windows[-1]


def plan_layers(config: PreTrainedConfig, name: str) -> LayerPlan:
    """The plan of a text configuration. Raises ValueError that names the layer types which cannot be rolled back."""
    types = _layer_types(config)
    layers = _cache_layers(config, types, name)
    recurrent = tuple(i for i, layer in enumerate(layers) if type(layer) is LinearAttentionLayer)
    foreign = {
        types[i] if types else type(layer).__name__
        for i, layer in enumerate(layers)
        if i not in recurrent and not _is_slotted(layer, types[i] if types else None)
    }
    if foreign:
        raise _refusal(name, foreign)
    layer_windows = tuple(
        layer.sliding_window if type(layer) is DynamicSlidingWindowLayer else None for layer in layers
    )
    windows = sorted(set(layer_windows) - {None})
    if len(windows) > 1:
        raise ValueError(f"target {name}: layers slide over windows of {windows} tokens; one size is supported")
    full = () if windows and not types else (None,)  # one mask for all, and it slides
    return LayerPlan(types, (*full, *windows), layer_windows, recurrent)


def fresh_states(config: PreTrainedConfig, recurrent: tuple[int, ...]) -> dict[int, LinearAttentionLayer]:
    """Empty states for the recurrent layers, by layer index."""
    if not recurrent:
        return {}
    layers = DynamicCache(config=config).layers
    return {i: layers[i] for i in recurrent}


def _layer_types(config: PreTrainedConfig) -> tuple[str, ...]:
    try:
        return tuple(config.layer_types or ())  # a property in some families: not in to_dict()
    except AttributeError:
        return ()


def _cache_layers(config: PreTrainedConfig, types: tuple[str, ...], name: str) -> list:
    try:
        return DynamicCache(config=config).layers
    except KeyError as error:  # a type that the library's cache does not know
        raise _refusal(name, {str(error.args[0])}) from error


def _is_slotted(layer, layer_type: str | None) -> bool:
    """Whether keys and values by slot are all that the layer keeps, seen through a mask that is ours to give."""
    if type(layer) is DummyLayer:  # also stands for attention over another layer's keys, which is not the same
        return layer_type in STATELESS_TYPES
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer_type in (None, *MASKED_TYPES)


def _refusal(name: str, types: set[str]) -> ValueError:
    return ValueError(
        f"target {name}: layers of type {', '.join(sorted(types))} keep what a session cannot roll back; choose a "
        "target whose layers are full_attention, sliding_attention or purely recurrent"
    )
