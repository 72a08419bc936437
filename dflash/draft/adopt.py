"""Starting from a trained draft: its weights in a draft that has more, such as a head put on it."""

from __future__ import annotations

import torch

from dflash.draft.draft import Draft

# What another draft may have otherwise: additions that change nothing until they are trained, and the block trained at.
MAY_DIFFER = ("head", "block_size")


@torch.no_grad()
def adopt(draft: Draft, other: Draft) -> None:
    """Copy every weight of ``other`` into ``draft``; what ``other`` lacks stays as initialised, the identity.

    Raises ValueError that lists what else differs, and where ``other`` has a head that ``draft`` has not.
    """
    mine, theirs = draft.shape.to_dict(), other.shape.to_dict()
    keys = sorted((mine | theirs).keys() - set(MAY_DIFFER))
    findings = [
        f"{key}: there {theirs.get(key)}, here {mine.get(key)}" for key in keys if mine.get(key) != theirs.get(key)
    ]
    if "head" in theirs and theirs["head"] != mine.get("head"):
        findings.append(f"head: there {theirs['head']}, here {mine.get('head')}; a head can be added, not exchanged")
    if findings:
        raise ValueError("init_from: the draft there is another one:\n  " + "\n  ".join(findings))
    draft.load_state_dict(draft.state_dict() | other.state_dict())
