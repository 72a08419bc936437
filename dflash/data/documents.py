"""Documents: token ids with a mask of what the target itself generates, the unit every source yields."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Document:
    """One document. ids: int32 [n]. supervised: bool [n], True on response tokens. origin: where it came from
    (``file:line``), for messages to people."""

    ids: np.ndarray
    supervised: np.ndarray
    origin: str = ""

    def __post_init__(self):
        if self.ids.shape != self.supervised.shape or self.ids.ndim != 1:
            raise ValueError(
                f"document {self.origin}: ids {self.ids.shape} and supervised {self.supervised.shape} must be equal "
                "one-dimensional shapes"
            )

    def __len__(self) -> int:
        return len(self.ids)
