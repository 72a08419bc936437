"""The lossless check of a target: does all that drafts are trained and verified on equal the model's own forward?

For architectures that nobody has tried here. Each check compares with ``model(input_ids)`` of transformers, without any
cache, mask or session of ours, on random tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dflash.argmax import argmax
from dflash.types import TokenBatch

if TYPE_CHECKING:
    from dflash.target.target import Target

# Errors relative to the largest value: two orders of a sum in fp32; half precision says little more than "not junk".
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
HALF_TOLERANCE = 0.1


@dataclass(frozen=True)
class Check:
    """One check. worst: the largest error; scale: the largest value compared; passed: worst is within tolerance."""

    name: str
    passed: bool
    worst: float
    scale: float
    note: str = ""


@torch.no_grad()
def probe(target: Target, *, length: int = 48, seed: int = 0) -> list[Check]:
    """All checks, the cheap ones first. ``length``: tokens of the longest row; take it past the sliding window.

    A check that raises has failed; its note is the error.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (3, min(length, target.dims.max_position_embeddings - 8))
    ids_BS = torch.randint(0, target.dims.vocab_size, shape, generator=generator).to(target.device)
    case = _Case(target, ids_BS, generator)
    return [case.run(name, check) for name, check in CHECKS.items()]


class _Case:
    """A target, tokens, and what the model itself makes of them, computed once."""

    def __init__(self, target: Target, ids_BS: Tensor, generator: torch.Generator):
        self.target, self.ids_BS, self.generator = target, ids_BS, generator
        self.own = target.model(input_ids=ids_BS, output_hidden_states=True, use_cache=False)
        last = target.dims.num_layers - 1
        self.taps = tuple(sorted({0, last // 2, max(0, last - 1)}))

    def run(self, name: str, check: Callable[[_Case], Iterator[tuple[Tensor, Tensor]]]) -> Check:
        worst = scale = 0.0
        try:
            for ours, own in check(self):
                worst = max(worst, float((ours.float() - own.float()).abs().max()))
                scale = max(scale, float(own.float().abs().max()))
        except Exception as error:  # the architecture is unknown: whatever it raises is the finding
            return Check(name, False, float("nan"), scale, f"{type(error).__name__}: {error}".splitlines()[0])
        tolerance = TOLERANCES.get(self.target.dtype, HALF_TOLERANCE)
        return Check(name, worst <= tolerance * scale, worst, scale)

    def batch(self, *borders: int) -> TokenBatch:
        """The tokens as packed rows whose documents end at ``borders``; what is behind the last is padding."""
        ids = self.ids_BS
        index = torch.arange(ids.shape[1], device=ids.device)
        ends = torch.tensor(borders, device=ids.device)
        document = (index[:, None] >= ends).sum(1)
        starts = torch.cat([ends.new_zeros(1), ends])[document]
        document = torch.where(document < len(borders), document, -1)
        rows = [x.expand_as(ids).contiguous() for x in (document, index - starts)]
        return TokenBatch(ids, rows[0], rows[1], rows[0] >= 0)


def embeddings(case: _Case) -> Iterator[tuple[Tensor, Tensor]]:
    """The embedding a draft is given is what the first layer sees."""
    yield case.target.embed(case.ids_BS), case.own.hidden_states[0]


def features(case: _Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Tapped states are the outputs of the layers named."""
    taps_BSTH = case.target.features(case.batch(case.ids_BS.shape[1]), case.taps).taps_BSTH
    for t, tap in enumerate(case.taps):
        yield taps_BSTH[:, :, t], case.own.hidden_states[tap + 1]


def logits(case: _Case) -> Iterator[tuple[Tensor, Tensor]]:
    """The final norm, the head and whatever the family does to its logits are followed."""
    last_BSH = case.target.features(case.batch(case.ids_BS.shape[1]), (0,), with_last=True).last_BSH
    yield case.target.logits(last_BSH), case.own.logits


def packed_documents(case: _Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Documents of a packed row do not see each other."""
    S = case.ids_BS.shape[1]
    borders = (3, 8, S - 3)  # the last is long, to pass the window
    last_BSH = case.target.features(case.batch(*borders), (0,), with_last=True).last_BSH
    for start, end in zip((0, *borders), borders, strict=False):
        alone = case.target.model(input_ids=case.ids_BS[:, start:end], use_cache=False).logits
        yield case.target.logits(last_BSH[:, start:end]), alone


def partial_keeps(case: _Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Rejected tokens leave no trace: random strides with junk behind them, other counts in every row."""
    target, S = case.target, case.ids_BS.shape[1]
    session = target.open(len(case.ids_BS), capacity=S + 8)
    yield from _walk(case, session, rows=[0, 1, 2], lengths=[0, 0, 0], until=S)


def leaving_rows(case: _Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Prompts of different lengths; a row leaves the batch, the others go on."""
    target, S = case.target, case.ids_BS.shape[1]
    session = target.open(3, capacity=S + 8)
    lengths = [S // 2, S // 4, S // 3]
    session.advance(case.ids_BS[:, : S // 2])
    session.keep(torch.tensor(lengths, device=target.device), lengths=lengths)
    session.select(torch.tensor([2, 1], device=target.device), lengths=[S // 3, S // 4])
    yield from _walk(case, session, rows=[2, 1], lengths=[S // 3, S // 4], until=S)


def greedy_tokens(case: _Case) -> Iterator[tuple[Tensor, Tensor]]:
    """Greedy decoding of a ragged batch against the model run anew over each row for every token.

    Compares the logits of the tokens chosen: a near-tie may be decided either way, a wrong token costs its regret.
    """
    target, count = case.target, 8
    lengths = [case.ids_BS.shape[1] // part for part in (2, 4, 3)]
    session = target.open(3, capacity=max(lengths) + count)
    rows = [case.ids_BS[b, :n].tolist() for b, n in enumerate(lengths)]
    hidden_BSH, _ = session.advance(case.ids_BS[:, : max(lengths)])
    hidden_BH = hidden_BSH[torch.arange(3), torch.tensor(lengths) - 1]
    kept_B = torch.tensor(lengths, device=target.device)
    for step in range(count):
        session.keep(kept_B, lengths=[length + step for length in lengths])
        tokens_B = argmax(target.logits(hidden_BH))
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            own_V = target.model(input_ids=torch.tensor([row], device=target.device), use_cache=False).logits[0, -1]
            yield own_V[token], own_V.max()
            row.append(token)
        hidden_BH = session.advance(tokens_B[:, None])[0][:, 0]
        kept_B = torch.ones_like(kept_B)


def _walk(case: _Case, session, *, rows: list[int], lengths: list[int], until: int):
    """Advance in random strides, keep random parts, and yield (logits of what is kept, the model's own)."""
    generator, target = case.generator, case.target
    while min(lengths) < until:
        stride = int(torch.randint(1, 9, (1,), generator=generator))
        chunk = torch.randint(0, target.dims.vocab_size, (len(rows), stride), generator=generator).to(target.device)
        counts = []
        for i, row in enumerate(rows):
            good = min(int(torch.randint(0, stride + 1, (1,), generator=generator)), until - lengths[i])
            chunk[i, :good] = case.ids_BS[row, lengths[i] : lengths[i] + good]
            counts.append(good)
        logits_BQV = target.logits(session.advance(chunk)[0])
        for i, row in enumerate(rows):
            if counts[i]:
                yield logits_BQV[i, : counts[i]], case.own.logits[row, lengths[i] : lengths[i] + counts[i]]
            lengths[i] += counts[i]
        session.keep(torch.tensor(counts, device=target.device), lengths=lengths)


CHECKS = {
    "embeddings": embeddings,
    "features": features,
    "logits": logits,
    "packed documents": packed_documents,
    "sessions, partial keeps": partial_keeps,
    "sessions, leaving rows": leaving_rows,
    "sessions, greedy tokens": greedy_tokens,
}
