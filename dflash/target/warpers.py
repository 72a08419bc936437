"""Truncations of a distribution before sampling: transformers' own logits processors behind one function.

They stand here because transformers stays behind the target's border; ``decode.sampling`` applies what this makes to
target and draft alike.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

Warper = Callable[[Tensor], Tensor]


def make_warper(*, top_k: int | None = None, top_p: float | None = None, min_p: float | None = None) -> Warper | None:
    """Logits [..., V], already divided by the temperature, -> the same with -inf where a token is cut; None: no cut.

    In the order of transformers' generate: the top_k likeliest tokens, of those the fewest that hold top_p of the
    probability, of those the ones at least min_p times as likely as the likeliest. None turns one off. Ties at the edge
    of top_k stay in. Raises ValueError for values out of bounds.
    """
    _check_bounds(top_k, top_p, min_p)
    processors = LogitsProcessorList()
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        processors.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        processors.append(MinPLogitsWarper(min_p))
    if not processors:
        return None
    return lambda logits: processors(None, logits.reshape(-1, logits.shape[-1])).view(logits.shape)


def _check_bounds(top_k: int | None, top_p: float | None, min_p: float | None) -> None:
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"decoding.top_k={top_k}: must be a whole number of at least 1; null turns it off")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"decoding.top_p={top_p}: must be above 0 and at most 1; null turns it off")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"decoding.min_p={min_p}: must be between 0 and 1; null turns it off")
