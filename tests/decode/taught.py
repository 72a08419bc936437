"""A draft that has learnt one target's continuations of a few prompts well enough to be right now and then."""

from __future__ import annotations

import torch

from dflash.blocks import make_blocks
from dflash.draft.draft import Draft
from dflash.draft.mask import block_geometry
from dflash.objective.objective import Objective
from dflash.objective.terms import CrossEntropy
from dflash.objective.weights import uniform
from dflash.target.target import Target
from dflash.types import TokenBatch


def teach(
    target: Target, draft: Draft, sequences: list[list[int]], *, steps: int, learning_rate: float = 3e-3
) -> Draft:
    """Every position of every sequence is an anchor, in every step."""
    length = max(map(len, sequences))
    ids = torch.tensor([sequence + [0] * (length - len(sequence)) for sequence in sequences])
    index = torch.arange(length).expand_as(ids)
    inside = index < torch.tensor([[len(sequence)] for sequence in sequences])
    batch = TokenBatch(ids, torch.where(inside, 0, -1), index, inside)
    block_size = draft.shape.block_size
    valid = inside & (index > 0)
    blocks = make_blocks(batch, index, valid, block_size=block_size, mask_token_id=draft.shape.mask_token_id)
    geometry = block_geometry(batch, blocks)
    features = target.features(batch, draft.shape.taps)
    noise = target.embed(draft.inputs(blocks))
    objective = Objective({"cross_entropy": (1.0, CrossEntropy())}, uniform(), chunk_blocks=1000)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):
        loss = objective(draft(noise, features.taps_BSTH, geometry), blocks, features, target, head=draft.head)
        optimizer.zero_grad()
        (loss.numerator / loss.denominator).backward()
        optimizer.step()
    return draft.eval()
