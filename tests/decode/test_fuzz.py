"""Random shapes, lengths, drafts, verifiers and batches: not one token may differ from the target's own.

``--fuzz-cases 10000`` for more than the suite's. A case is a function of its number, so a failure can be repeated.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scripted import ScriptedDraft
from toys import HYBRID_FAMILIES, TARGET_FAMILIES, tiny_draft, tiny_target
from verifiers import linear_costs

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Adaptive, CaDDTree, DDTree, Match, Rejection
from dflash.draft.layout import alternating_layout, full_layout, sliding_layout

NUM_PROMPTS, LONGEST_BLOCK, LONGEST_OUTPUT = 16, 10, 12
SAMPLINGS = (Sampling(), Sampling(1.0, seed=3), Sampling(0.8, seed=4, top_k=30, top_p=0.9, min_p=0.01))


@dataclass(frozen=True)
class World:
    """A target with prompts and its own outputs, which one ragged batch gave."""

    target: object
    sampling: Sampling
    prompts: list[list[int]]
    outputs: list[tuple[int, ...]]


@cache
def world(family: str, which: int) -> World:
    target, dice = tiny_target(family), random.Random(f"{family}/{which}")
    prompts = [[dice.randrange(63) for _ in range(dice.randint(1, 28))] for _ in range(NUM_PROMPTS)]
    traces, _ = AutoregressiveDecoder(target, sampling=SAMPLINGS[which]).generate(
        prompts, max_new_tokens=LONGEST_OUTPUT + LONGEST_BLOCK
    )
    return World(target, SAMPLINGS[which], prompts, [trace.tokens for trace in traces])


def pick_verifier(dice: random.Random, *, trees: bool, greedy: bool):
    chains = [Match(), Rejection()] if greedy else [Match()]
    adaptive = Adaptive(threshold=dice.choice((0.0, 0.01, 0.3, 1.0)), chain=dice.choice(chains))
    choices = [*chains, adaptive]
    if trees:
        nodes = dice.randint(1, 40)
        costs = linear_costs(nodes, draft=dice.uniform(0.1, 2), each=dice.choice((0.0, 0.01, 0.05, 1.0)))
        choices += [DDTree(num_nodes=nodes), CaDDTree(max_nodes=nodes, costs=costs)] * 2
    return dice.choice(choices)


def pick_change(dice: random.Random, stops: list[int]):
    """What a scripted draft says instead of the right token."""
    rate, period, salt = dice.random(), dice.randint(2, 6), dice.random()

    def sometimes(row: int, index: int, token: int) -> int:
        return token if random.Random(f"{salt}/{row}/{index}").random() < rate else (token + 1 + index) % 63

    def stop_early(row: int, index: int, token: int) -> int:
        return stops[0] if stops and index % period == 0 else token

    return dice.choice(
        [
            lambda row, index, token: token,
            lambda row, index, token: (token + 1) % 63,
            lambda row, index, token: token if index % period else (token + 7) % 63,
            lambda row, index, token: 63,  # the mask token itself
            sometimes,
            stop_early,
        ]
    )


def pick_draft(dice: random.Random, here: World, rows: range, stops: list[int]):
    if dice.random() < 0.4:
        layout = dice.choice([full_layout(), alternating_layout(window=dice.randint(1, 12)), sliding_layout(window=5)])
        return tiny_draft(here.target, depth=dice.randint(1, 2), layout=layout, seed=dice.randrange(1000))
    sequences = [here.prompts[row] + list(here.outputs[row]) for row in rows]
    sureness = 1.0 if here.target.softcap is not None else dice.choice((1.0, 8.0, 30.0))
    return ScriptedDraft(
        here.target, tiny_draft(here.target).shape, sequences, pick_change(dice, stops), sureness=sureness
    )


def expected(tokens: tuple[int, ...], limit: int, stops: list[int]) -> tuple[tuple[int, ...], bool]:
    """The target's own output up to a stop token or the limit."""
    for end, token in enumerate(tokens[:limit], start=1):
        if token in stops:
            return tokens[:end], True
    return tokens[:limit], False


def run_case(number: int, counts: Counter | None = None) -> str | None:
    """What differs, in words; None where nothing does. ``counts``: how many outputs each kind of case compared."""
    dice, turn = random.Random(number), number // len(TARGET_FAMILIES)
    family = TARGET_FAMILIES[number % len(TARGET_FAMILIES)]
    here = world(family, (number % len(TARGET_FAMILIES) + turn // 50) % len(SAMPLINGS))
    first, count = dice.randrange(NUM_PROMPTS - 4), dice.randint(1, 4)
    rows = range(first, first + count)
    limit = dice.randint(1, LONGEST_OUTPUT)
    stops = dice.sample(range(63), dice.choice((0, 1, 4)))
    if stops:
        stops[0] = dice.choice(here.outputs[dice.choice(rows)])
    verifier = pick_verifier(dice, trees=family not in HYBRID_FAMILIES, greedy=here.sampling.greedy)
    draft = pick_draft(dice, here, rows, stops)
    block_size = dice.randint(1, LONGEST_BLOCK)
    decoder = SpeculativeDecoder(here.target, draft, block_size=block_size, sampling=here.sampling, verifier=verifier)
    together = dice.choice((None, dice.randint(1, count)))
    traces, _ = decoder.generate(
        [here.prompts[row] for row in rows],
        max_new_tokens=limit,
        stop_token_ids=stops,
        first_index=first,
        batch_size=together,
    )
    kind = "tree" if verifier.needs_tree else "chain"
    how = "greedy" if here.sampling.greedy else "sampled"
    for row, trace in zip(rows, traces, strict=True):
        if counts is not None:
            counts[family, f"{kind}, {how}"] += 1
        wanted = expected(here.outputs[row], limit, stops)
        if (trace.tokens, trace.stopped) != wanted or sum(trace.lengths) + 1 != len(trace.tokens):
            what = f"{family}, block {block_size}, {verifier}, {type(draft).__name__}, {here.sampling}"
            return f"case {number}: {what}, {together} at a time, prompt {row}: {trace.tokens} is not {wanted}"
    return None


def as_table(counts: Counter) -> str:
    """Markdown: outputs compared by family and kind of case."""
    kinds = sorted({kind for _, kind in counts})
    lines = [f"| target | {' | '.join(kinds)} |", "| --- |" + " ---: |" * len(kinds)]
    for family in TARGET_FAMILIES:
        cells = (f"{counts[family, kind]:,}" if counts[family, kind] else "-" for kind in kinds)
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_not_one_token_differs(pytestconfig):
    counts = Counter()
    failures = [f for f in (run_case(i, counts) for i in range(pytestconfig.getoption("--fuzz-cases"))) if f]
    table = pytestconfig.getoption("--fuzz-table")
    if table is not None:
        Path(table).write_text(as_table(counts))
    assert not failures, "\n".join(failures)
