"""Prompts that wait for a place: the same output as alone, in a batch that stays full and where it is in memory."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from test_left_to_right import step_draft
from toys import ATTENTION_FAMILIES, HYBRID_FAMILIES, TARGET_FAMILIES, random_prompts, tiny_draft, tiny_target

import dflash.decode.run
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.batch import Batch
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.lookup import Lookup
from dflash.decode.run import FEWEST_TO_JOIN, alike
from dflash.decode.sampling import Sampling
from dflash.decode.verify import DDTree, Match
from dflash.target.session import TargetSession
from dflash.target.target import Target

LENGTHS = (3, 25, 7, 1, 12, 5, 18, 9, 30, 2, 6, 14, 4, 41, 8, 11, 22, 10, 3, 16)  # the longest waits
PROMPTS = random_prompts(LENGTHS)
NEW_TOKENS, FIRST = 16, 5
WARM = Sampling(1.0, seed=2)


@cache
def alone(family: str, sampling: Sampling) -> tuple[list, tuple[int, ...]]:
    """The target's own output to each prompt in a batch of its own, and stop tokens that end some of them early."""
    target = tiny_target(family)
    decoder = AutoregressiveDecoder(target, sampling=sampling)
    free = [decoder.generate([p], max_new_tokens=NEW_TOKENS, first_index=FIRST + i) for i, p in enumerate(PROMPTS)]
    tokens = [traces[0].tokens for traces, _ in free]
    stops = tuple({tokens[i][i % NEW_TOKENS] for i in (1, 4, 7, 9, 13)})
    limited = [
        decoder.generate([p], max_new_tokens=NEW_TOKENS, stop_token_ids=stops, first_index=FIRST + i)[0][0]
        for i, p in enumerate(PROMPTS)
    ]
    assert len({len(trace.tokens) for trace in limited}) > 4, "rows should end at many different times"
    return [(trace.tokens, trace.stopped) for trace in limited], stops


def decoded(decoder, stops, *, batch_size: int | None):
    traces, timing = decoder.generate(
        PROMPTS, max_new_tokens=NEW_TOKENS, stop_token_ids=stops, first_index=FIRST, batch_size=batch_size
    )
    return [(trace.tokens, trace.stopped) for trace in traces], traces, timing


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("family", "batch_size"), [*((family, 3) for family in TARGET_FAMILIES), *(("gpt_oss", n) for n in (1, 8, 100))]
)
def test_waiting_changes_nothing(family, batch_size, sampling):
    target = tiny_target(family)
    expected, stops = alone(family, sampling)
    assert decoded(AutoregressiveDecoder(target, sampling=sampling), stops, batch_size=batch_size)[0] == expected
    draft = tiny_draft(target, block_size=5)
    decoder = SpeculativeDecoder(target, draft, sampling=sampling)
    found, traces, _ = decoded(decoder, stops, batch_size=batch_size)
    assert found == expected
    assert traces == decoded(decoder, stops, batch_size=None)[1]  # the lengths as well


@pytest.mark.parametrize("what", ["tree", "lookup", "left to right", "blocks of one"])
@pytest.mark.parametrize("family", ["gpt_oss", "qwen3"])
def test_whatever_proposes(family, what):
    target = tiny_target(family)
    expected, stops = alone(family, Sampling())
    draft = {"lookup": Lookup(), "left to right": step_draft(target)}.get(what) or tiny_draft(target, block_size=5)
    verifier = DDTree(num_nodes=7) if what == "tree" else Match()
    decoder = SpeculativeDecoder(target, draft, verifier=verifier, block_size=1 if what == "blocks of one" else None)
    assert decoded(decoder, stops, batch_size=4)[0] == expected


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_replayed(family, monkeypatch):
    monkeypatch.setattr("dflash.replay.Tracing.warm_up_calls", 2)
    target = Target(tiny_target(family).model, name=family, replay=True)
    expected, stops = alone(family, Sampling())
    for decoder in (AutoregressiveDecoder(target), SpeculativeDecoder(target, tiny_draft(target, block_size=5))):
        for _ in range(2):
            assert decoded(decoder, stops, batch_size=4)[0] == expected
    assert sum(replay.num_recordings for replay in target.replays.values()) > 2
    assert not any(replay.refused for replay in target.replays.values())


@pytest.mark.parametrize("batch_size", [3, 8, 16])
def test_the_batch_stays_full_and_where_it_is(batch_size, monkeypatch):
    target = tiny_target("gpt_oss")
    _, stops = alone("gpt_oss", Sampling())
    seen: list[tuple[int, int]] = []
    plain = Batch.round

    def watched(batch, lengths):
        seen.append((len(lengths), batch.target_session.cache.layers[0].keys.data_ptr()))
        return plain(batch, lengths)

    monkeypatch.setattr(Batch, "round", watched)
    decoder = SpeculativeDecoder(target, tiny_draft(target, block_size=5))
    _, traces, timing = decoded(decoder, stops, batch_size=batch_size)
    sizes = [size for size, _ in seen]
    assert timing.num_rounds == len(seen) and max(sizes) == batch_size
    assert sum(sizes) == sum(len(trace.lengths) for trace in traces)  # no place of a row that is done is computed
    fewest = batch_size + 1 - -(-batch_size // FEWEST_TO_JOIN)
    full = [size for size in sizes if size >= fewest]
    assert sizes[: len(full)] == full and len(sizes) - len(full) < NEW_TOKENS  # then no prompt waits any more
    assert len({where for _, where in seen}) == 1


def test_prompts_are_read_together():
    """Of 16 places two have to be free: reading prompts one by one would cost more than the places."""
    target = tiny_target("gpt_oss")
    prompts = random_prompts((4,) * 40)
    read: list[int] = []
    plain = target.open

    class Watched(Target):
        def open(self, batch_size, **kwargs):
            read.append(batch_size)
            return plain(batch_size, **kwargs)

    watched = Watched(target.model, name="watched")
    AutoregressiveDecoder(watched).generate(prompts, max_new_tokens=3, batch_size=16)
    assert read == [16, 16, 8]


@pytest.mark.parametrize("batch_size", [None, 6])
@pytest.mark.parametrize("family", ["gpt_oss", "lfm2"])
@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
def test_prompts_of_like_lengths_are_read_together(family, sampling, batch_size, monkeypatch):
    """In passes of at most 48 tokens, the first of which has room for the rows of all."""
    monkeypatch.setitem(dflash.decode.run.READ_TOKENS, "cpu", 48)
    target, read = tiny_target(family), []
    expected, stops = alone(family, sampling)
    advance = TargetSession.advance

    def watched(session, ids_BQ, **options):
        read.append(tuple(ids_BQ.shape))
        return advance(session, ids_BQ, **options)

    monkeypatch.setattr(TargetSession, "advance", watched)
    decoder = AutoregressiveDecoder(target, sampling=sampling)
    assert decoded(decoder, stops, batch_size=batch_size)[0] == expected
    passes = [rows * length for rows, length in read if length > 1]
    assert max(passes) <= 48 and sum(passes) < 1.3 * sum(LENGTHS)
    decoder = SpeculativeDecoder(target, tiny_draft(target, block_size=5), sampling=sampling)
    assert decoded(decoder, stops, batch_size=batch_size)[0] == expected


def test_parts_of_like_lengths():
    lengths = {0: 9, 1: 2, 2: 8, 3: 3, 4: 30}
    assert alike(lengths, most_tokens=150) == [[0, 1, 2, 3, 4]]
    assert alike(lengths, most_tokens=149) == [[1, 3, 2, 0], [4]]
    assert alike(lengths, most_tokens=20) == [[1, 3], [2, 0], [4]]
    assert alike(lengths, most_tokens=1) == [[1], [3], [2], [0], [4]]


@pytest.mark.parametrize("family", HYBRID_FAMILIES)
def test_recurrent_states_come_along_whatever_was_kept_of_the_last_pass(family):
    """Rows join a session with a pass that is not yet settled, of whose tokens each row kept another number."""
    target = tiny_target(family)
    ids = torch.tensor(random_prompts((9, 9, 9, 9)))
    old, new = (target.open(2, capacity=20) for _ in range(2))
    for session, rows, kept in ((old, ids[:2], (4, 6)), (new, ids[2:], (9, 2))):
        session.advance(rows)
        session.keep(torch.tensor(kept), lengths=kept)
    old.select(torch.tensor([1]), lengths=[6])
    new.select(torch.tensor([1]), lengths=[2])
    old.join(new)
    assert (old.lengths_B.tolist(), old.shortest, old.longest) == ([6, 2], 2, 6)
    hidden, _ = old.advance(torch.stack([ids[1, 6:8], ids[3, 2:4]]))
    for row, (source, start) in enumerate(((ids[1], 6), (ids[3], 2))):
        session = target.open(1, capacity=20)
        whole, _ = session.advance(source[None, : start + 2])
        torch.testing.assert_close(hidden[row], whole[0, start:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
def test_prompts_are_given_as_they_are_done_whatever_numbers_they_have(sampling):
    target = tiny_target("gpt_oss")
    expected, stops = alone("gpt_oss", sampling)
    asked = [0, 3, 4, 9, 11, 12, 17, 19]
    draft = tiny_draft(target, block_size=5)
    for decoder in (
        AutoregressiveDecoder(target, sampling=sampling),
        SpeculativeDecoder(target, draft, sampling=sampling),
    ):
        found = decoder.as_done(
            [PROMPTS[i] for i in asked],
            max_new_tokens=NEW_TOKENS,
            stop_token_ids=stops,
            indices=[FIRST + i for i in asked],
            batch_size=3,
        )
        places, traces = zip(*found, strict=True)
        assert sorted(places) == list(range(len(asked))) != list(places)
        assert [(t.tokens, t.stopped) for t in traces] == [expected[asked[place]] for place in places]


def test_a_batch_has_at_least_one_place():
    target = tiny_target("qwen3")
    for decoder in (AutoregressiveDecoder(target), SpeculativeDecoder(target, tiny_draft(target))):
        with pytest.raises(ValueError, match="batch_size=0"):
            decoder.generate(PROMPTS, max_new_tokens=2, batch_size=0)
