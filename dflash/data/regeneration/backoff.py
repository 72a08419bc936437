"""How long to wait before a request is tried again: exponential back-off with jitter, and what the server asks for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import numpy as np

LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more is as good as gone


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """attempts: requests a prompt gets in all. first_seconds: the first wait, doubled at each, at most most_seconds.

    Raises ValueError for values out of bounds.
    """

    attempts: int = 8
    first_seconds: float = 0.5
    most_seconds: float = 60.0

    def __post_init__(self):
        if self.attempts < 1:
            raise ValueError(f"engine.backoff.attempts={self.attempts}: must be at least 1; try 8")
        if not 0 <= self.first_seconds <= self.most_seconds:
            raise ValueError(
                f"engine.backoff.first_seconds={self.first_seconds}: must lie in 0..engine.backoff.most_seconds="
                f"{self.most_seconds}; try 0.5 and 60"
            )

    def seconds(self, attempt: int, rng: np.random.Generator, *, retry_after: str | None = None) -> float:
        """Seconds to wait behind failed ``attempt`` (0 is the first). retry_after: the header's value, obeyed.

        The jitter takes up to half of the wait away, so that requests which failed together do not return together.
        """
        wait = min(self.most_seconds, self.first_seconds * 2.0 ** min(attempt, 60)) * (1 - rng.random() / 2)
        return max(wait, min(_asked_for(retry_after), LONGEST_RETRY_AFTER))


def _asked_for(retry_after: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as seconds or as a date (RFC 9110, 10.2.3); 0 if it is none."""
    if retry_after is None:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
