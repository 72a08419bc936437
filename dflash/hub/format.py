"""The protocol of a format: how a draft's shape and its target's facts become a config.json, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dflash.draft.shape import DraftShape
from dflash.hub.bundle import Description, TargetFacts


class Format(Protocol):
    """How a draft lies in a folder. Tensor names are those of ``Draft`` in every format.

    shared: names of copies of the target's own matrices that the folder carries when written.
    """

    name: str
    shared: tuple[str, ...]

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether this config.json is of this format."""
        ...

    def to_config(self, shape: DraftShape, facts: TargetFacts, *, dtype: str) -> dict[str, Any]:
        """config.json as plain values. Raises ValueError for a shape that the format cannot hold."""
        ...

    def from_config(self, config: Mapping[str, Any], *, num_target_layers: int | None = None) -> Description:
        """The inverse; never raises, but lists what is wrong.

        num_target_layers: the target's, for folders that do not say.
        """
        ...

    def warnings(self, shape: DraftShape) -> list[str]:
        """What its servers would do otherwise than this draft was trained for, each a sentence."""
        ...
