"""Rotary parameters in both spellings: ``rope_parameters``, and the older ``rope_theta`` with ``rope_scaling``.

Servers of either age must turn positions alike, so all three keys are written; any of the spellings is read.
"""

from __future__ import annotations

from typing import Any

from dflash.hub.keys import Keys

# What each kind needs beyond rope_theta, and what it may have; the kinds are those of ``draft.rope``.
_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_MAY: dict[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim")
}
_PRETRAINED = "original_max_position_embeddings"


def rope_config(parameters: dict[str, Any]) -> dict[str, Any]:
    """The three keys for ``DraftShape.rope_parameters``; ``rope_scaling`` is null for plain rotary positions."""
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    plain = parameters.get("rope_type", "default") == "default"
    return {
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None if plain else scaling,
        "rope_parameters": dict(parameters),
    }


def read_rope(keys: Keys, *, max_position_embeddings: int) -> dict[str, Any]:
    """``DraftShape.rope_parameters`` from either spelling; both together must agree."""
    new, old = keys.get("rope_parameters"), keys.get("rope_scaling")
    theta = keys.get("rope_theta")
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            keys.note(f"{key}={value!r}", "must be a mapping")
            return {"rope_type": "default", "rope_theta": 10000.0}
    longest = max_position_embeddings
    spelt = _spelt(new if new is not None else old or {}, theta, longest)
    if new is not None and (old or theta is not None):
        rest = {key: value for key, value in new.items() if key != "rope_theta"}
        other = _spelt(old or rest, theta if theta is not None else spelt.get("rope_theta"), longest)
        if _told(other) != _told(spelt):
            keys.note("rope_parameters", f"says {spelt}, but rope_theta and rope_scaling say {other}; make them agree")
    _check(keys, spelt)
    return spelt


def _spelt(values: dict[str, Any], theta: Any, longest: int) -> dict[str, Any]:
    """``rope_parameters`` in today's words: rope_type, never type; rope_theta inside; the pretrained length filled in
    as transformers does."""
    values = dict(values)
    kind = values.pop("type", None)
    values.setdefault("rope_type", kind or "default")
    if theta is not None:
        values.setdefault("rope_theta", theta)
    if values["rope_type"] in ("yarn", "llama3"):
        values.setdefault(_PRETRAINED, longest)
    return values


def _told(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _check(keys: Keys, parameters: dict[str, Any]) -> None:
    """Note what ``draft.rope`` could not compute with."""
    inner = Keys(parameters, prefix=f"{keys.prefix}rope_parameters.", parent=keys)
    kind = inner.get("rope_type")
    inner.number("rope_theta")
    inner.fixed("partial_rotary_factor", 1, 1.0)
    if kind not in _NEEDS:
        inner.note(f"rope_type={kind!r}", f"is not supported; must be one of {', '.join(_NEEDS)}")
        return
    for key in _NEEDS[kind]:
        inner.number(key)
    for key in _MAY.get(kind, ()):
        inner.get(key)
    inner.close()
