"""Floating-point operations that a training step of the draft cannot do without, by part.

A multiply-add counts as two. Forward once, and the gradients that are needed: of weights and inputs for the layers, of
weights alone for ``fc`` (features carry no gradient), of inputs alone for lm_head (it is frozen). What an
implementation does on top, such as scores that a mask throws away, or a forward pass that is done again, is no part of
the floor.
"""

from __future__ import annotations

from dataclasses import dataclass

from dflash.draft.shape import DraftShape

PARTS = ("fuse", "context", "block", "attention", "lm_head")


@dataclass(frozen=True)
class Load:
    """What a step works on. tokens: of context, over all rows. slots: of all blocks, anchors included. predicted:
    slots whose logits are made. pairs: (query, key) pairs that see each other, in one layer."""

    tokens: int
    slots: int
    predicted: int
    pairs: int


def step_flops(shape: DraftShape, load: Load, *, vocab_size: int) -> dict[str, int]:
    """Operations by part; ``PARTS`` says which there are."""
    H, D = shape.hidden_size, shape.head_dim
    queries, keys = shape.num_heads * D, shape.num_kv_heads * D
    block = H * queries + 2 * H * keys + queries * H + 3 * H * shape.intermediate_size
    return {
        "fuse": 2 * 2 * load.tokens * len(shape.taps) * H * H,
        "context": 3 * 2 * load.tokens * H * 2 * keys * shape.depth,
        "block": 3 * 2 * load.slots * block * shape.depth,
        "attention": 3 * 2 * 2 * load.pairs * queries * shape.depth,
        "lm_head": 2 * 2 * load.predicted * H * vocab_size,
    }


def seen_pairs(anchors: list[int], *, block_size: int) -> int:
    """(query, key) pairs of full attention where a document fills its row: all before an anchor, and the block."""
    return sum(block_size * (anchor + block_size) for anchor in anchors)
