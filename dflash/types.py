"""The nouns of the framework: small frozen dataclasses of tensors that its verbs pass to each other.

Shape letters: B batch, S sequence, A anchors, K block, T taps, H hidden, V vocabulary, N number of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor


class _Movable:
    """Mixin for dataclasses whose tensor fields travel together."""

    def to(self, device: torch.device | str):
        """The same noun with every tensor on ``device``."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()}
        return type(self)(**moved)


@dataclass(frozen=True)
class TokenBatch(_Movable):
    """Packed rows of tokens.

    ids_BS: long, token ids. documents_BS: long, id of the document inside its row (0, 1, ...), -1 on padding.
    positions_BS: long, position inside the document (restarts at 0 with each one, as in decoding).
    supervised_BS: bool, True where the token is the target's own (a response token).
    """

    ids_BS: Tensor
    documents_BS: Tensor
    positions_BS: Tensor
    supervised_BS: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents_BS >= 0).sum())


@dataclass(frozen=True)
class TargetFeatures(_Movable):
    """What one pass of the frozen target over a TokenBatch leaves behind.

    taps_BSTH: outputs of the tapped decoder layers, in the target's dtype.
    last_BSH: hidden states after the final norm (input of lm_head), or None where no objective asks for them.
    """

    taps_BSTH: Tensor
    last_BSH: Tensor | None = None


@dataclass(frozen=True)
class AnchoredBlocks(_Movable):
    """Training blocks: A anchors per row, each followed by K - 1 masked slots (paper section 4.2).

    anchors_BA: long, index of the anchor inside its row (0 where invalid). valid_BA: bool.
    input_ids_BAK: long, [anchor token, MASK, ..., MASK]. index_BAK: long, row index of each slot (clamped to S - 1).
    positions_BAK: long, position of each slot in its document.
    labels_BAK: long, the data token at each slot (slot 0 holds the anchor itself; never trained).
    label_mask_BAK: bool, cumulative: a slot counts only if every slot before it does.
    """

    anchors_BA: Tensor
    valid_BA: Tensor
    input_ids_BAK: Tensor
    index_BAK: Tensor
    positions_BAK: Tensor
    labels_BAK: Tensor
    label_mask_BAK: Tensor


@dataclass(frozen=True)
class LossTerms:
    """Sums before ratios: loss = numerator / denominator, and what is logged beside it.

    numerator: scalar with gradient. denominator: scalar, no gradient.
    sums: name -> (numerator, denominator), both scalars without gradient, added over micro-batches and ranks before
    any division.
    """

    numerator: Tensor
    denominator: Tensor
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """How P proposals hang together: node 0 is the anchor, node i proposal i - 1; K = P + 1. No two siblings hold the
    same token.

    parents_BP: long, node of each proposal's parent, always a lower number. depths_BK: long, tokens behind the anchor,
    which has depth 0. visible_BKK: bool, [b, i, j] where node j is node i or an ancestor of it. max_depth: no node lies
    deeper.
    """

    parents_BP: Tensor
    depths_BK: Tensor
    visible_BKK: Tensor
    max_depth: int


@dataclass(frozen=True)
class Proposal:
    """What a draft proposes for every row: tokens_BP long, a chain or, with ``tree``, a tree.

    probabilities_BPV: the distribution each token was drawn from (rejection sampling). counts_B: long, how many leading
    proposals of a chain each row really makes; None: all. expected_B: tokens the draft's own probabilities promise,
    bonus included, where they were asked. Of a chain: logits_BPV, what each token was chosen from, given the proposals
    before it; confidence_BP, what a trained head gives for the target keeping it, given that it keeps those.
    """

    tokens_BP: Tensor
    probabilities_BPV: Tensor | None = None
    tree: Tree | None = None
    counts_B: Tensor | None = None
    expected_B: Tensor | None = None
    logits_BPV: Tensor | None = None
    confidence_BP: Tensor | None = None


@dataclass(frozen=True)
class Verdict:
    """The target's judgement of a proposal: accepted_B long in 0..P (proposals kept) and bonus_B long (the
    target's own next token).

    path_BL: of a tree, long, the node at each depth of the accepted path, the anchor first; any node behind its end.
    """

    accepted_B: Tensor
    bonus_B: Tensor
    path_BL: Tensor | None = None


@dataclass(frozen=True)
class DecodeTrace:
    """What decoding one prompt left behind.

    tokens: generated ids, stop token included. lengths: tokens really emitted in each round (bonus included; the
    first token, which the prefill decides, belongs to no round). stopped: a stop token ended it.

    Not compared, since they may depend on the batch: nodes, the proposals that the target's pass of each round held;
    expected, tokens that the draft's probabilities promised for it, empty where the verifier did not ask.
    """

    tokens: tuple[int, ...]
    lengths: tuple[int, ...]
    stopped: bool
    nodes: tuple[int, ...] = field(default=(), compare=False)
    expected: tuple[float, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class DecodeTiming:
    """Wall-clock seconds of one batch: prefill_seconds, and decode_seconds after it; rounds run."""

    prefill_seconds: float
    decode_seconds: float
    num_rounds: int
