"""Reads and words single fields of a report (a plain dict whose leaves may all be absent).

The alphabet that tables, plots, written reports and combined sweeps share, so that a figure looks the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = "–"  # noqa: RUF001 (an en dash is meant)

# The order in which keys of a report are written, whatever the nesting; keys not named here follow by name.
KEY_ORDER = (
    *("title", "kind", "provenance", "target", "draft", "data", "settings", "measurements", "curve"),
    *("job", "status", "error", "command", "seed", "machine", "threads", "git_commit", "versions", "seconds", "python"),
    *("step", "label", "name", "family", "block_size", "batch_size", "temperature", "num_prompts", "max_new_tokens"),
    *("cuts", "verifier", "acceptance", "proposals", "speed", "lossless", "chain_walk", "divergence", "num_documents"),
    *("proposing", "draft_seconds", "head_seconds"),
    *("mean", "mean_interval", "low", "high", "median", "p90", "mean_of_prompts", "num_rounds", "num_tokens", "loss"),
    *("prefix_survival", "histogram", "ar_tokens_per_second", "speculative_tokens_per_second"),
    *("mean_prompt_speedup", "mean_prompt_speedup_interval", "total_speedup"),
    *("round_cost_ar_steps", "ar_prefill_seconds", "speculative_prefill_seconds", "equal", "total", "num_parameters"),
    "num_head_parameters",
    *("num_supervised_tokens", "bad_lines", "repeated_4gram_share"),
)
_RANK = {key: index for index, key in enumerate(KEY_ORDER)}


def lookup(mapping: Any, *keys: str) -> Any:
    """The value under nested ``keys``, or None where any level is absent or None."""
    for key in keys:
        if not isinstance(mapping, Mapping):
            return None
        mapping = mapping.get(key)
    return mapping


def key_rank(path: str | tuple) -> tuple:
    """Sort key of a dotted name (or tuple of parts): known keys in reading order, then numbers, then names."""
    parts = path.split(".") if isinstance(path, str) else [str(part) for part in path]
    return tuple((_RANK.get(p, len(_RANK)), int(p) if p.isdecimal() else -1, p) for p in parts)


def escape(text: str) -> str:
    """``text`` made safe for one cell of a markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def figure(value: Any, style: str = ".2f", unit: str = "") -> str:
    """A number in a format, or the en dash; NaN and infinity count as not measured."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return MISSING
    return f"{value:{style}}{unit}"


def short(value: Any) -> str:
    """A number with two decimals at most and no trailing zeros: 2, 2.5, 3.17."""
    text = figure(value)
    return text.rstrip("0").rstrip(".") if "." in text else text


def rate(value: Any) -> str:
    """Tokens per second: one decimal under 100, thousands separated above."""
    return figure(value, ",.0f" if value is not None and value >= 100 else ".1f")


def percent(value: Any) -> str:
    """A share as a percentage with one decimal."""
    return MISSING if value is None else figure(100 * value, ".1f", " %")


def millions(count: Any) -> str:
    """A parameter count for people: 812, 4.2 K, 3.1 M, 20.9 B."""
    if count is None:
        return MISSING
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def describe(measurement: Mapping, *, with_batch: bool = True) -> str:
    """The conditions of a measurement in words: "block 8, batch 1, T=0"; a verifier unless it is the plain chain."""
    fields = [("block_size", "block "), ("batch_size", "batch "), ("temperature", "T=")]
    wanted = [(k, word) for k, word in fields if with_batch or k != "batch_size"]
    parts = [f"{word}{short(measurement[k])}" for k, word in wanted if measurement.get(k) is not None]
    parts += [f"{cut}={value:g}" for cut, value in (measurement.get("cuts") or {}).items()]
    if measurement.get("verifier") not in (None, "chain"):
        parts.append(measurement["verifier"])
    return ", ".join(parts)


def full_label(measurement: Mapping, *, with_batch: bool = True) -> str:
    """Label and conditions: "trained draft, block 8, batch 1, T=0"."""
    parts = [measurement.get("label") or "draft", describe(measurement, with_batch=with_batch)]
    return ", ".join(part for part in parts if part)


def measurements_of(report: Mapping) -> list[Mapping]:
    """The measurements of a report, an empty list where it has none."""
    return list(report.get("measurements") or [])


def histogram_counts(measurement: Mapping) -> dict[int, int]:
    """Rounds per acceptance length, every length from 1 to the block size present; empty where not measured."""
    raw = lookup(measurement, "acceptance", "histogram") or {}
    counts = {int(length): int(count or 0) for length, count in raw.items()}
    if not counts:
        return {}
    longest = max([*counts, measurement.get("block_size") or 1])
    return {length: counts.get(length, 0) for length in range(min(1, *counts), longest + 1)}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested measurement as one level of dotted names: acceptance.mean, acceptance.mean_interval.low, ...

    What is told prompt by prompt stays in report.json.
    """
    if prefix.endswith("per_prompt"):
        return {}
    if prefix.endswith("_interval") and (value is None or len(value) == 2):
        low, high = value or (None, None)
        items = [("low", low), ("high", high)]
    elif isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value, start=1))
    else:
        return {prefix: value}
    return {k: v for key, inner in items for k, v in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}


def compact_value(value: Any) -> str:
    """Any value of a report on one line, nested ones as "key: value, key: value"."""
    if value is None or value == {} or value == []:
        return MISSING
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {compact_value(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(compact_value(inner) for inner in value) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and abs(value) >= 100_000:
        return f"{value:,}"
    return str(value)
