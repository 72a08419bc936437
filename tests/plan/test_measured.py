"""What a plan says of memory against what training really takes: within 15 % where one part each dominates."""

from __future__ import annotations

import sys

import pytest

from benchmarks.plan import CASES, compare


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
@pytest.mark.parametrize("case", CASES)
def test_planned_peak_is_within_15_percent_of_the_measured(case):
    result = compare(case)
    assert result.measured > 200  # MiB: tensors, not the interpreter
    assert abs(result.error) < 0.15, result
