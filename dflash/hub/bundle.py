"""The nouns of this part: a draft as formats carry it, and what they tell of its target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dflash.draft.shape import DraftShape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TargetFacts:
    """What a folder says of the target. ``name``: its folder or hub id, empty where the format has none."""

    vocab_size: int
    name: str = ""
    architectures: tuple[str, ...] = ()
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


@dataclass(frozen=True)
class Description:
    """A config.json as far as it was understood.

    findings: every missing, unknown and unfit key; the shape holds harmless values in place of ``unfit`` ones.
    notes: what its reader should know although it is no mistake.
    """

    shape: DraftShape
    facts: TargetFacts
    findings: tuple[str, ...] = ()
    unfit: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """A draft with its weights (names as in ``Draft.state_dict``).

    shared: the target's own embedding and head, for formats that carry copies of them (``SHARED``); else empty.
    """

    shape: DraftShape
    facts: TargetFacts
    weights: dict[str, Tensor]
    shared: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
SHARED = (EMBEDDING, HEAD)
