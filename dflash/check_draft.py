"""Checks of the draft's shape and of its head against the loss and the verifier; part of ``check``.

Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from dflash.draft.layout import full_layout
from dflash.draft.shape import shape_draft

RULES = ("taps", "layout", "head")
TREES = ("dflash.decode.verify.DDTree", "dflash.decode.verify.CaDDTree")


def find_draft(
    config: Mapping, dims: SimpleNamespace | None, build: Callable[[Any, str], Any], said: list[str]
) -> list[str]:
    """What the draft's own shape function says, to each of its values apart, so that none hides another.

    dims: the target's, where known. said: findings so far; a rule whose values have one is left alone.
    """
    draft, findings, rules = config["draft"], [], {}
    for name in RULES:
        if "???" in draft[name].values() or any(finding.startswith(f"draft.{name}.") for finding in said):
            continue  # its values have a finding already
        try:
            rules[name] = build(draft[name], f"draft.{name}")
        except ValueError as error:
            findings.append(str(error))
    findings += _head(config, rules.get("head"))
    findings += _left_to_right(config, rules.get("head"))
    if dims is None:
        return findings
    sound = {
        "depth": 1,
        "block_size": 8,
        "mask_token_id": 0,
        "taps": lambda num_layers: (0,),
        "layout": full_layout(),
    }
    options = {k: v for k, v in draft.items() if k not in ("_target_", "_partial_", *RULES)}
    heads = {k: options.pop(k, None) for k in ("num_heads", "num_kv_heads")}
    for change in [*({k: v} for k, v in {**options, **rules}.items()), heads]:
        try:
            shape_draft(dims, **{**sound, **change})
        except ValueError as error:
            findings.append(str(error))
        except TypeError:
            pairs = ", ".join(f"draft.{key}={value}" for key, value in change.items() if key not in rules)
            findings.append(
                f"{pairs or 'draft.taps'}: not a key and value that a draft takes; see --cfg job for those there are"
            )
    return findings


def _head(config: Mapping, rule: Callable | None) -> Iterator[str]:
    """A head, its loss and the verifier must fit each other."""
    if rule is None:
        return
    head = rule(1, 2**62)  # of any target; only what kind it is matters
    loss = (config.get("objective") or {}).get("heads") or {}
    confident = head is not None and head.confident
    if "confidence" in (loss.get("terms") or {}) and not confident:
        yield "objective.heads.terms.confidence: this draft has no confidence head; choose heads=dspark"
    if confident and "confidence" not in (loss.get("terms") or {}):
        yield "draft.head.confident=true: no term of the loss trains it; choose heads=dspark"
    if head is not None and head.restricts and loss.get("base_share") != [1.0, 1.0]:
        yield (
            f"objective.heads.base_share={loss.get('base_share')}: a {head.name} head gives most tokens no probability "
            "at all, so no other loss can be taken on its logits; set objective.heads.base_share=[1,1]"
        )
    if ((config.get("decoding") or {}).get("verifier") or {}).get("trained") and not confident:
        yield "decoding.verifier.trained=true: this draft has no confidence head; choose heads=dspark"


def _left_to_right(config: Mapping, rule: Callable | None) -> Iterator[str]:
    """A draft that goes left to right needs no head, and no tree grows from it."""
    if not config["draft"].get("left_to_right"):
        return
    head = None if rule is None else rule(1, 2**62)
    if head is not None:
        yield (
            f"draft.left_to_right=true with a {head.name} head: such a draft knows what stands before a slot; choose "
            "heads=none"
        )
    if ((config.get("decoding") or {}).get("verifier") or {}).get("_target_") in TREES:
        yield (
            "draft.left_to_right=true with a tree verifier: trees grow over slots drafted at once; choose verify=chain"
        )
