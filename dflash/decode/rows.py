"""The host's side of decoding: what each row has emitted, when it stops, and which rows are still running."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dflash.types import DecodeTrace


@dataclass(frozen=True)
class Gained:
    """What a round gave one row: accepted proposals and behind them the bonus; how many proposals the target's pass
    held; the tokens that the draft's probabilities promised, where the verifier asked."""

    tokens: list[int]
    num_nodes: int = 0
    expected: float | None = None


@dataclass
class Row:
    """One prompt being decoded. ``index``: its place in the call's list of prompts."""

    index: int
    tokens: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    stopped: bool = False
    nodes: list[int] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)

    def emit(self, tokens: Sequence[int], *, limit: int, stop_token_ids: frozenset[int]) -> int:
        """Append tokens up to and including the first stop token, at most up to ``limit``; returns how many."""
        before = len(self.tokens)
        for token in tokens[: limit - before]:
            self.tokens.append(token)
            if token in stop_token_ids:
                self.stopped = True
                break
        return len(self.tokens) - before

    def note(self, gained: Gained, count: int) -> None:
        """A round is over, of whose tokens ``count`` were emitted."""
        self.lengths.append(count)
        self.nodes.append(gained.num_nodes)
        if gained.expected is not None:
            self.expected.append(gained.expected)

    def trace(self) -> DecodeTrace:
        return DecodeTrace(
            tuple(self.tokens), tuple(self.lengths), self.stopped, tuple(self.nodes), tuple(self.expected)
        )


def pad_prompts(prompts: Sequence[Sequence[int]], *, device: torch.device) -> Tensor:
    """Ids, long [B, longest], padded with 0 at the end."""
    ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(list(prompt))
    return ids.to(device)


def last_valid(hidden_BSH: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, H]: the state of each row's last real token."""
    return hidden_BSH[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1]


def clock(device: torch.device) -> float:
    """Seconds, after everything queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
