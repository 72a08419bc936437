"""The target's features, once for all drafts of a study: every draft reads its own taps out of the union of all."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from dflash.target.features import FeatureSource
from dflash.target.target import Target
from dflash.types import TargetFeatures, TokenBatch


def now() -> np.ndarray:
    """[wall-clock seconds, seconds of processor time of all threads]; only differences mean anything."""
    return np.array([time.perf_counter(), time.process_time()])


class SharedFeatures:
    """A feature source over another one, which is always asked for the same taps and so may keep what it computed.

    seconds: wall-clock and processor time spent in here, which is no draft's own.
    """

    def __init__(self, source: FeatureSource, taps: Iterable[int], *, with_last: bool):
        self.source = source
        self.taps = tuple(sorted(set(taps)))
        self.with_last = with_last
        self.seconds = np.zeros(2)

    def __call__(self, target: Target, batch: TokenBatch, taps: tuple[int, ...], *, with_last: bool) -> TargetFeatures:
        """As ``Target.features``. Taps must be among those named at the start, last states promised there."""
        started = now()
        whole = self.source(target, batch, self.taps, with_last=self.with_last)
        own = whole.taps_BSTH
        if taps != self.taps:
            own = own[:, :, [self.taps.index(tap) for tap in taps]]
        self.seconds += now() - started
        return TargetFeatures(own, whole.last_BSH if with_last else None)
