"""Keys of command-line overrides, and which of them choose an option of a group."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).resolve().parent.parent.parent / "conf"


def key_of(override: str) -> str:
    """The key of ``key=value``, without signs and package."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def is_group(override: str) -> bool:
    """Whether it chooses an option of a group."""
    return (CONF / key_of(override)).is_dir()
