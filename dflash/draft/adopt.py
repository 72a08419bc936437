"""Starting from a trained draft: its weights in a draft that has more, such as a head put on it."""

from __future__ import annotations

import torch

from dflash.draft.draft import Draft

# What a draft may have and another not: additions that change nothing until they are trained.
ADDITIONS = ("head", "convolution", "separate_context")


@torch.no_grad()
def adopt(draft: Draft, other: Draft) -> None:
    """Copy every weight of ``other`` into ``draft``; what ``other`` lacks stays as initialised, the identity. The block
    trained at may be another.

    Raises ValueError that lists what else differs, and where ``other`` has an addition that ``draft`` has not.
    """
    mine, theirs = draft.shape.to_dict(), other.shape.to_dict()
    added = {key for key in ADDITIONS if key not in theirs}
    keys = sorted((mine | theirs).keys() - added - {"block_size"})
    findings = [
        f"{key}: there {theirs.get(key)}, here {mine.get(key)}" for key in keys if mine.get(key) != theirs.get(key)
    ]
    if findings:
        additions = f"{', '.join(ADDITIONS)} can be added, not taken away or exchanged"
        raise ValueError(f"init_from: the draft there is another one ({additions}):\n  " + "\n  ".join(findings))
    draft.load_state_dict(draft.state_dict() | other.state_dict())
    for layer in draft.layers if draft.shape.separate_context and "separate_context" in added else ():
        layer.self_attn.separate_context()  # copies of what has just been loaded
