"""Takes a configuration apart key by key, and remembers everything that is wrong with it, so that all is told at once.

Every format reads its config.json through this. No heavy library is imported: ``check`` reads folders too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

REQUIRED = object()
# Written by transformers and by trainers into any config.json; none of them changes what a draft computes.
HARMLESS = (
    *("_attn_implementation", "_name_or_path", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype"),
    *("eos_token_id", "id2label", "initializer_range", "is_encoder_decoder", "label2id", "name_or_path"),
    *("output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict"),
    *("tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache"),
)


def complain(what: str, findings: Iterable[str]) -> None:
    """Raises ValueError listing the findings about ``what``, if there are any."""
    findings = list(dict.fromkeys(findings))
    if len(findings) == 1:
        raise ValueError(f"{what}: {findings[0]}")
    if findings:
        raise ValueError(f"{what}: {len(findings)} things are wrong:\n" + "\n".join(f"  * {line}" for line in findings))


class Keys:
    """The keys of one (nested) mapping. A getter whose value is unfit notes a finding and gives a harmless value."""

    def __init__(self, values: Mapping[str, Any], *, prefix: str = "", parent: Keys | None = None):
        self.values = values
        self.prefix = prefix
        self.findings: list[str] = [] if parent is None else parent.findings
        self.unfit: set[str] = set() if parent is None else parent.unfit  # keys that gave a harmless value instead
        self._taken: set[str] = set(HARMLESS)

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value, None and absence alike giving ``default``; the key counts as known."""
        self._taken.add(key)
        value = self.values.get(key)
        if value is None and default is REQUIRED:
            self._refuse(key, "is missing", None)
            return None
        return default if value is None else value

    def integer(self, key: str, *, low: int = 1, default: Any = REQUIRED) -> int:
        """A whole number of at least ``low``."""
        value = self.get(key, default)
        if value is None:
            return low
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            return self._refuse(key, f"={value!r} must be a whole number of at least {low}", low)
        return value

    def number(self, key: str, *, default: Any = REQUIRED) -> float:
        """A number above 0."""
        value = self.get(key, default)
        if value is None:
            return 1.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            return self._refuse(key, f"={value!r} must be a number above 0", 1.0)
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            return self._refuse(key, f"={value!r} must be true or false", default)
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.get(key, REQUIRED)
        if value is None:
            return ()
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            return self._refuse(key, f"={value!r} must be a list of whole numbers", ())
        return tuple(value)

    def fixed(self, key: str, *allowed: Any) -> None:
        """Absent, or one of these: another value would mean a computation that is not ours."""
        value = self.get(key)
        if value is not None and value not in allowed:
            self.note(f"{key}={value!r}", f"is not supported; must be {' or '.join(map(repr, allowed))}")

    def nested(self, key: str, *, required: bool = True) -> Keys:
        """The mapping under ``key``; close it before this one."""
        value = self.get(key, REQUIRED if required else None)
        if value is not None and not isinstance(value, dict):
            self.note(f"{key}={value!r}", "must be a mapping")
        return Keys(value if isinstance(value, dict) else {}, prefix=f"{self.prefix}{key}.", parent=self)

    def note(self, what: str, wrong: str) -> None:
        """Remember that ``what``, a key of this mapping, is wrong."""
        self.findings.append(f"{self.prefix}{what} {wrong}")

    def _refuse(self, key: str, wrong: str, instead: Any) -> Any:
        self.unfit.add(key)
        self.findings.append(f"{self.prefix}{key}{wrong if wrong.startswith('=') else ' ' + wrong}")
        return instead

    def close(self) -> None:
        """Note every key that nobody has asked for."""
        for key in sorted(set(self.values) - self._taken):
            self.note(key, "is not a key this format has; delete it if it changes nothing in the draft")
