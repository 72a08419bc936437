"""The shapes of heads: plain values, enough to build a head, to store it and to compare it; no heavy library.

A head shape is an entry of ``DraftShape``. Conf ``heads`` names the rules below, which wait for the target's sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from dflash.draft.heads.head import Head


class HeadShape(Protocol):
    """name: as in conf ``heads``. restricts: tokens that the head rules out get no probability at all, so a loss on
    its logits may be infinite. confident: it says how sure it is that the target keeps a proposal."""

    name: ClassVar[str]
    restricts: ClassVar[bool] = False
    confident: bool = False

    def build(self) -> Head:
        """A fresh head, the identity until it is trained."""
        ...


HeadRule = Callable[[int, int], HeadShape | None]  # (hidden size, vocabulary size) of the target -> shape


@dataclass(frozen=True)
class MarkovShape:
    """The Markov head of DSpark (arXiv 2607.05147); with ``confident``, its confidence head too."""

    hidden_size: int
    vocab_size: int
    rank: int
    confident: bool = False
    name: ClassVar[str] = "markov"
    restricts: ClassVar[bool] = False

    def build(self) -> Head:
        from dflash.draft.heads.markov import MarkovHead  # torch: checks of a configuration do without

        return MarkovHead(self)


@dataclass(frozen=True)
class GruShape:
    """The GRU correction of Domino (arXiv 2605.29707). state_size: of the GRU."""

    hidden_size: int
    vocab_size: int
    rank: int
    state_size: int
    name: ClassVar[str] = "gru"
    restricts: ClassVar[bool] = False
    confident: ClassVar[bool] = False

    def build(self) -> Head:
        from dflash.draft.heads.gru import GruHead

        return GruHead(self)


@dataclass(frozen=True)
class SelectorShape:
    """The path selector of DFlash 2: chooses among the ``top_k`` likeliest tokens of each slot."""

    hidden_size: int
    vocab_size: int
    rank: int
    top_k: int
    name: ClassVar[str] = "selector"
    restricts: ClassVar[bool] = True
    confident: ClassVar[bool] = False

    def build(self) -> Head:
        from dflash.draft.heads.selector import SelectorHead

        return SelectorHead(self)


KINDS = (MarkovShape, GruShape, SelectorShape)


def head_to_dict(shape: HeadShape | None) -> dict[str, Any] | None:
    """JSON-able form; ``head_from_dict`` is its inverse."""
    return None if shape is None else {"name": shape.name, **asdict(shape)}


def head_from_dict(values: dict[str, Any] | None) -> HeadShape | None:
    """Raises ValueError for a head of no known kind."""
    if values is None:
        return None
    rest = {key: value for key, value in values.items() if key != "name"}
    for kind in KINDS:
        if kind.name == values["name"]:
            return kind(**rest)
    known = ", ".join(kind.name for kind in KINDS)
    raise ValueError(f"draft.head={values['name']}: no head of this version, which has {known}; update the package")


def no_head() -> HeadRule:
    """Every slot speaks for itself."""
    return lambda hidden_size, vocab_size: None


def markov_head(*, rank: int = 256, confident: bool = False) -> HeadRule:
    """A bias on each slot's logits by the token before it, of this rank (DSpark: 256)."""
    _at_least("rank", rank, 1)
    return lambda hidden_size, vocab_size: MarkovShape(hidden_size, vocab_size, rank, confident)


def gru_head(*, rank: int = 256, state_size: int = 1024) -> HeadRule:
    """A correction of this rank by a GRU over all tokens before the slot (Domino: 256 and 1024)."""
    _at_least("rank", rank, 1)
    _at_least("state_size", state_size, 1)
    return lambda hidden_size, vocab_size: GruShape(hidden_size, vocab_size, rank, state_size)


def selector_head(*, rank: int = 256, top_k: int = 16) -> HeadRule:
    """A choice among ``top_k`` candidates a slot by the one before it (DFlash 2: 256 and 16)."""
    _at_least("rank", rank, 1)
    _at_least("top_k", top_k, 1)

    def shape(hidden_size: int, vocab_size: int) -> SelectorShape:
        if top_k > vocab_size:
            raise ValueError(f"draft.head.top_k={top_k}: must be at most the target's {vocab_size} tokens; try 16")
        return SelectorShape(hidden_size, vocab_size, rank, top_k)

    return shape


def _at_least(key: str, value: int, low: int) -> None:
    if value < low:
        raise ValueError(f"draft.head.{key}={value}: must be at least {low}; try draft.head.{key}=16")
