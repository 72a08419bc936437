"""How exact the products of float32 matrices are while a draft trains.

torch's own switch is one for the whole process. Here it is thrown for the draft's part of a step only: what the target
computes, and what is decoded, must stay the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def product_precision(precision: str) -> Iterator[None]:
    """``torch.set_float32_matmul_precision`` inside. "medium" lets a processor that multiplies bf16 (AMX, AVX-512 BF16)
    do so and add in float32, "high" and "medium" a GPU use TF32; where there is no such unit nothing changes."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
