"""Losslessness where rounding decides near-ties: first divergence and regret, with a bound that is measured too.

In fp32 greedy speculative decoding must equal the target's own output token by token. In half precision the target
itself says something else when it reads the same tokens in passes of another width, so equality cannot be demanded.
What can be: that no token was chosen which the target holds to be worse than its best by more than such rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dflash.target.target import Target
from dflash.types import DecodeTrace, TokenBatch


@dataclass(frozen=True)
class Regrets:
    """Of one prompt's output, in logits: how far the chosen tokens were below the target's best, teacher-forced.

    worst: the largest regret. noise: the largest difference between teacher-forced logits and those of block-wise
    passes over the same tokens. magnitude: the largest logit.
    """

    worst: float
    noise: float
    magnitude: float


def divergence(
    target: Target,
    prompts: Sequence[Sequence[int]],
    own: Sequence[DecodeTrace],
    ours: Sequence[DecodeTrace],
    *,
    block_size: int,
) -> dict | None:
    """How the greedy outputs ``ours`` differ from the target's autoregressive ``own``; None in fp32 and above.

    The bound on regret: a token that is best in a pass over a block can be below the best of the teacher-forced pass
    by at most twice the difference of the two passes' logits, since one logit may have risen and the other fallen.
    That difference is measured on the outputs themselves, in blocks of ``block_size``, and is at least the spacing of
    the dtype's numbers at the largest logit. Costs about 2 / block_size of autoregressive decoding.
    """
    if torch.finfo(target.dtype).eps <= torch.finfo(torch.float32).eps:
        return None
    theirs = [regrets(target, p, t.tokens, block_size=block_size) for p, t in zip(prompts, own, strict=True)]
    found = [
        plain if trace.tokens == other.tokens else regrets(target, prompt, trace.tokens, block_size=block_size)
        for prompt, trace, other, plain in zip(prompts, ours, own, theirs, strict=True)
    ]
    magnitude = max(r.magnitude for r in (*found, *theirs))
    noise = max(max(r.noise for r in (*found, *theirs)), torch.finfo(target.dtype).eps * magnitude)
    within = [r.worst <= 2 * noise for r in found]
    first = [first_difference(a.tokens, b.tokens) for a, b in zip(own, ours, strict=True)]
    return {
        "dtype": str(target.dtype).removeprefix("torch."),
        "num_diverged": sum(at is not None for at in first),
        "earliest": min((at for at in first if at is not None), default=None),
        "worst_regret": max(r.worst for r in found),
        "worst_regret_of_baseline": max(r.worst for r in theirs),
        "bound": 2 * noise,
        "within": {"equal": sum(within), "total": len(within)},
        "per_prompt": [{"first": at, "regret": r.worst} for at, r in zip(first, found, strict=True)],
    }


def first_difference(own: Sequence[int], ours: Sequence[int]) -> int | None:
    """Index of the first token that differs, 0 being the first generated one; None where the outputs are equal."""
    for at, (a, b) in enumerate(zip(own, ours, strict=False)):
        if a != b:
            return at
    return None if len(own) == len(ours) else min(len(own), len(ours))


@torch.no_grad()
def regrets(target: Target, prompt: Sequence[int], tokens: Sequence[int], *, block_size: int) -> Regrets:
    """Regret and noise of one greedy output, ``tokens``, behind ``prompt``."""
    ids_1S = torch.tensor([[*prompt, *tokens]], device=target.device)
    start, end = len(prompt) - 1, ids_1S.shape[1] - 1  # these positions decide tokens
    documents = torch.zeros_like(ids_1S)
    positions = torch.arange(end + 1, device=target.device)[None]
    batch = TokenBatch(ids_1S, documents, positions, documents == 0)
    forced_SH = target.features(batch, (0,), with_last=True).last_BSH[0]
    session = target.open(1, capacity=end + block_size)
    worst = noise = magnitude = 0.0
    for at in [0, *range(start + 1, end, block_size)]:  # the prompt first, then block by block, as decoding does
        stop = start + 1 if at == 0 else min(at + block_size, end)
        hidden_QH = session.advance(ids_1S[:, at:stop])[0][0]
        session.keep(torch.tensor([stop - at], device=target.device), lengths=[stop])
        deciding = slice(max(at, start), stop)
        forced_QV = target.logits(forced_SH[deciding]).float()
        block_QV = target.logits(hidden_QH[deciding.start - at :]).float()
        chosen_Q = ids_1S[0, deciding.start + 1 : stop + 1]
        worst = max(worst, float(_below_best(forced_QV, chosen_Q).max()))
        noise = max(noise, float((forced_QV - block_QV).abs().max()))
        magnitude = max(magnitude, float(forced_QV.abs().max()))
    return Regrets(worst, noise, magnitude)


def _below_best(logits_QV: Tensor, chosen_Q: Tensor) -> Tensor:
    """[Q]: how far each chosen token's logit is below the maximum."""
    return logits_QV.amax(-1) - logits_QV.gather(-1, chosen_Q[:, None])[:, 0]
