"""What a head is: a small module that makes the slots of a block depend on each other, left to right.

The draft gives every slot of a block at once, each blind to what the others will be. A head corrects a slot's logits by
the tokens before it: in training those of the data, all slots in one pass; in decoding those just proposed, slot by
slot (``slots``). Both give the same logits for the same tokens.

Letters: P slots behind the anchor (in a walk over B rows: D), G size of what a head remembers, V vocabulary, H hidden;
"..." any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Embed = Callable[[Tensor], Tensor]  # the target's frozen embedding: long [...] -> [..., H]


class Head(nn.Module):
    """Subclasses say what they remember of the tokens before a slot, and how they correct its logits by it.

    A fresh head corrects nothing, so that it can be put on a trained draft. Parameters over the whole vocabulary carry
    ``embed`` or ``lm_head`` in their names, by which optimizers tell tables from hidden matrices.
    """

    def read(self, previous_MP: Tensor, embed: Embed) -> Tensor:
        """What is remembered at each slot of M blocks, [M, P, G]. previous_MP: long, the token before each slot."""
        raise NotImplementedError

    def follow(self, memory: Tensor | None, previous: Tensor, embed: Embed) -> Tensor:
        """The same one slot on, [..., G], from the slot before (None at the first) and the token ``previous`` [...]."""
        raise NotImplementedError

    def correct(self, logits: Tensor, hidden: Tensor, memory: Tensor) -> Tensor:
        """float32 [..., V]: slots' logits, given their hidden states [..., H] and memories [..., G]."""
        raise NotImplementedError

    def greedy_walk(self, logits_BDV: Tensor, hidden_BDH: Tensor, anchor_B: Tensor) -> tuple[Tensor, Tensor] | None:
        """A shorter way to the greedy walk over a block, where there is one: tokens, long [B, D], and the logits each
        was chosen from, of as many tokens as could be chosen."""
        return None

    def confidence(self, hidden: Tensor, memory: Tensor) -> Tensor | None:
        """Logit [...] of how sure it is that the target keeps what the slot proposes; None: it does not say."""
        return None

    def forward(self, logits_MPV: Tensor, hidden_MPH: Tensor, previous_MP: Tensor, embed: Embed) -> Tensor:
        """Teacher-forced: the corrected logits of every slot, float32 [M, P, V]."""
        return self.correct(logits_MPV, hidden_MPH, self.read(previous_MP, embed))
