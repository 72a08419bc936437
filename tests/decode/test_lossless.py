"""Greedy speculative decoding gives the target's own output, whatever the draft, the family, the block or the batch."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from scripted import ScriptedDraft, always_wrong, expected_lengths, patchy, perfect
from toys import TARGET_FAMILIES, random_prompts, tiny_draft, tiny_target

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.rows import Row
from dflash.draft.layout import alternating_layout, full_layout

BLOCK_SIZES = (1, 2, 4, 8, 16)
PROMPTS = random_prompts((3, 11, 7, 30))
NEW_TOKENS = 20
SCRIPTS = {"perfect": perfect, "always wrong": always_wrong, "patchy": patchy}


@cache
def family_case(family: str):
    """(target, full sequences, stop tokens): rows end at different times, some at a stop token, some at the limit."""
    target = tiny_target(family)
    free, _ = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=NEW_TOKENS + 20)
    sequences = [prompt + list(trace.tokens) for prompt, trace in zip(PROMPTS, free, strict=True)]
    outputs = [list(trace.tokens[:NEW_TOKENS]) for trace in free]
    stops = choose_stops(outputs)
    return target, sequences, stops


def choose_stops(outputs: list[list[int]]) -> tuple[int, ...]:
    """One stop token after which at least one row ends early, at least one does not, and no two at the same time."""
    for token in range(64):
        ends = [output.index(token) if token in output else NEW_TOKENS for output in outputs]
        early = [end for end in ends if end < NEW_TOKENS]
        if early and max(early) > 3 and len(early) < len(outputs) and len(set(early)) == len(early):
            return (token,)
    raise AssertionError("no token stops some rows and not others: choose another seed")


def decode(target, draft, prompts, block_size: int, stops):
    decoder = SpeculativeDecoder(target, draft, block_size=block_size)
    return decoder.generate(prompts, max_new_tokens=NEW_TOKENS, stop_token_ids=stops)[0]


@cache
def baseline_of(target, stops):
    return AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=NEW_TOKENS, stop_token_ids=stops)[0]


def check(target, draft, one_row, block_size: int, stops):
    """The batch equals the baseline and each row equals itself alone; returns the traces."""
    baseline = baseline_of(target, stops)
    traces = decode(target, draft, PROMPTS, block_size, stops)
    for row, (trace, plain) in enumerate(zip(traces, baseline, strict=True)):
        assert (trace.tokens, trace.stopped) == (plain.tokens, plain.stopped), f"row {row}"
        assert sum(trace.lengths) + 1 == len(trace.tokens)
    alone = BLOCK_SIZES.index(block_size) % len(PROMPTS)  # each row has its turn
    assert decode(target, one_row(alone), [PROMPTS[alone]], block_size, stops) == [traces[alone]]
    assert {trace.stopped for trace in traces} == {True, False}
    return traces


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("layout", ["full", "alternating"])
@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_a_random_draft_loses_nothing(family, layout, block_size):
    target, _, stops = family_case(family)
    layouts = {"full": full_layout(), "alternating": alternating_layout(window=9)}
    draft = tiny_draft(target, block_size=8, layout=layouts[layout])
    check(target, draft, lambda row: draft, block_size, stops)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_a_scripted_draft_gains_exactly_what_it_says_right(family, script, block_size):
    """The perfect draft is accepted whole: an error by one, which losslessness cannot see, shows here."""
    target, sequences, stops = family_case(family)
    change = SCRIPTS[script]
    draft = ScriptedDraft(target, tiny_draft(target).shape, sequences, change)
    traces = check(target, draft, draft.only, block_size, stops)
    for row, trace in enumerate(traces):
        start = len(PROMPTS[row])
        end = start + len(trace.tokens)
        assert trace.lengths == expected_lengths(
            sequences[row], change, row=row, start=start, end=end, block_size=block_size
        )
        if script == "perfect":
            assert set(trace.lengths[:-1]) <= {block_size}
        if script == "always wrong":
            assert set(trace.lengths) <= {1}


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_the_baseline_equals_transformers_generate(family):
    target, sequences, _ = family_case(family)
    for prompt, sequence in zip(PROMPTS, sequences, strict=True):
        ids = torch.tensor([prompt])
        expected = target.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS + 20, pad_token_id=0
        )
        assert expected[0].tolist() == sequence


def test_the_limit_cuts_the_last_block():
    target, sequences, _ = family_case("qwen3")
    draft = ScriptedDraft(target, tiny_draft(target).shape, sequences, perfect)
    for limit in (1, 2, 5, 6, 9):
        traces, timing = SpeculativeDecoder(target, draft, block_size=4).generate(PROMPTS, max_new_tokens=limit)
        assert [len(trace.tokens) for trace in traces] == [limit] * 4
        assert not any(trace.stopped for trace in traces)
        assert timing.num_rounds == -(-(limit - 1) // 4)


def test_the_longest_row_may_leave_past_its_limit():
    """Its last block overshoots; the shorter rows that stay must not be charged for it."""
    target, sequences, _ = family_case("qwen3")

    def change(row: int, index: int, token: int) -> int:
        return token if row == 3 else always_wrong(row, index, token)

    draft = ScriptedDraft(target, tiny_draft(target).shape, sequences, change)
    traces, _ = SpeculativeDecoder(target, draft, block_size=8).generate(PROMPTS, max_new_tokens=10)
    assert [trace.lengths for trace in traces] == [(1,) * 9] * 3 + [(8, 1)]


def test_a_stop_token_as_first_token_ends_the_row_before_any_round():
    target, sequences, _ = family_case("qwen3")
    first = sequences[1][len(PROMPTS[1])]
    traces, _ = SpeculativeDecoder(target, tiny_draft(target), block_size=4).generate(
        PROMPTS, max_new_tokens=5, stop_token_ids=(first,)
    )
    assert traces[1].tokens == (first,)
    assert traces[1].lengths == ()
    assert traces[1].stopped


def test_emitted_tokens_are_reported_as_they_come():
    target, _, stops = family_case("qwen3")
    for decoder in (AutoregressiveDecoder(target), SpeculativeDecoder(target, tiny_draft(target), block_size=4)):
        counts = []
        traces, _ = decoder.generate(PROMPTS, max_new_tokens=9, stop_token_ids=stops, on_tokens=counts.append)
        assert sum(counts) == sum(len(trace.tokens) for trace in traces)


def test_empty_prompts_and_blocks_are_refused():
    target, _, _ = family_case("qwen3")
    for prompts in ([], [[1], []]):
        with pytest.raises(ValueError, match="every prompt needs at least one token"):
            AutoregressiveDecoder(target).generate(prompts, max_new_tokens=3)
    with pytest.raises(ValueError, match=r"block_size=0"):
        SpeculativeDecoder(target, tiny_draft(target), block_size=0)


def test_a_row_emits_up_to_a_stop_token_and_up_to_the_limit():
    row = Row(0)
    assert row.emit([1, 2], limit=5, stop_token_ids=frozenset({9})) == 2
    assert row.emit([9, 3], limit=5, stop_token_ids=frozenset({9})) == 1
    assert row.trace().tokens == (1, 2, 9)
    assert row.trace().stopped
    full = Row(1, tokens=[4, 4, 4, 4])
    assert full.emit([5, 9], limit=5, stop_token_ids=frozenset({9})) == 1
    assert not full.stopped  # the stop token came after the limit
