"""The off-by-one of taps, in the one place that knows it.

Ours, z-lab's (vLLM, SGLang) and transformers' ``target_layer_ids``: i is the output of decoder layer i, counted from 0.
speculators' ``aux_hidden_state_layer_ids``: an index into ``hidden_states``, whose entry 0 is the embedding, so i + 1.
"""

from __future__ import annotations

from collections.abc import Iterable


def to_hidden_state_ids(taps: Iterable[int]) -> list[int]:
    """Layers, counted from 0 -> indices into ``hidden_states``."""
    return [tap + 1 for tap in taps]


def from_hidden_state_ids(ids: Iterable[int]) -> tuple[int, ...]:
    """Indices into ``hidden_states`` -> layers, counted from 0."""
    return tuple(index - 1 for index in ids)
