"""The heads as tests take them: by name, at sizes that suit tiny targets."""

from __future__ import annotations

from toys import stir, tiny_draft

from dflash.draft.draft import Draft
from dflash.draft.heads.shapes import gru_head, markov_head, selector_head

HEADS = {
    "markov": markov_head(rank=5),
    "dspark": markov_head(rank=5, confident=True),
    "gru": gru_head(rank=5, state_size=7),
    "selector": selector_head(rank=5, top_k=6),
}


def headed_draft(target, name: str, *, stirred: bool = True, **options) -> Draft:
    """A tiny random draft with this head, fresh or with noise in all of its weights."""
    draft = tiny_draft(target, head=HEADS[name], **options)
    if stirred:
        stir(draft.head)
    return draft
