"""What a person sees of a stream: text in the colour of whoever wrote it, and what the draft was worth."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dflash.decode.decoder import StreamedToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DRAFTED = "green"
BROKEN = "\ufffd"  # how a decoder writes bytes that are no character yet


@dataclass
class Tally:
    """Sums over the answers so far. Seconds and tokens of rounds leave the first token, the prefill's, out."""

    num_tokens: int = 0
    num_drafted: int = 0
    num_rounds: int = 0
    round_tokens: int = 0
    round_seconds: float = 0.0
    _started: float = field(default=0.0, repr=False)

    def watch(self, stream: Iterable[StreamedToken]) -> Iterator[StreamedToken]:
        """The stream, counted as it passes."""
        rounds = 0
        for token in stream:
            if token.round == 0:
                self._started = time.perf_counter()
            else:
                self.round_tokens += 1
            self.num_tokens += 1
            self.num_drafted += token.drafted
            rounds = token.round
            yield token
        self.num_rounds += rounds
        if rounds:
            self.round_seconds += time.perf_counter() - self._started

    def sentence(self) -> str:
        """In one line: how much came from the draft, tokens a round, tokens a second."""
        if not self.num_tokens:
            return "no tokens"
        share = 100 * self.num_drafted / self.num_tokens
        parts = [f"{self.num_tokens} tokens, {self.num_drafted} of them ({share:.0f} %) from the draft"]
        if self.num_rounds:
            parts.append(f"{self.round_tokens / self.num_rounds:.2f} a round over {self.num_rounds} rounds")
            parts.append(f"{self.round_tokens / self.round_seconds:.0f} tokens a second behind the first")
        return "; ".join(parts)


def pieces(tokenizer: PreTrainedTokenizerBase, stream: Iterable[StreamedToken]) -> Iterator[tuple[str, bool]]:
    """(text, whether the draft proposed it) as soon as characters are whole. Special tokens are not shown.

    A piece is decoded behind the one before it, since some tokenizers write a token by what precedes it.
    """
    ids: list[int] = []
    before, read, drafted = 0, 0, False
    for token in stream:
        ids.append(token.token)
        drafted = token.drafted
        known = tokenizer.decode(ids[before:read], skip_special_tokens=True)
        text = tokenizer.decode(ids[before:], skip_special_tokens=True)
        if not text.endswith(BROKEN):
            before, read = read, len(ids)
            if len(text) > len(known):
                yield text[len(known) :], drafted
    rest = tokenizer.decode(ids[before:], skip_special_tokens=True)[
        len(tokenizer.decode(ids[before:read], skip_special_tokens=True)) :
    ]
    if rest:
        yield rest, drafted


def show(console: Console, parts: Iterable[tuple[str, bool]]) -> str:
    """Write pieces as they come, the draft's in colour; the whole text."""
    whole = []
    for text, drafted in parts:
        console.print(Text(text, style=DRAFTED if drafted else ""), end="", soft_wrap=True)
        whole.append(text)
    console.print()
    return "".join(whole)
