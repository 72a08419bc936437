"""Decoding with recorded steps: the tokens, lengths and logits of eager decoding, for every family and verifier."""

from __future__ import annotations

import pytest
import torch
from heads import headed_draft
from toys import ATTENTION_FAMILIES, HYBRID_FAMILIES, tiny_draft, tiny_target
from verifiers import linear_costs

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.lookup import Lookup
from dflash.decode.proposer import proposer_of
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Adaptive, CaDDTree, DDTree, Match, Rejection
from dflash.draft.layout import alternating_layout
from dflash.evaluation.measure import measure
from dflash.replay import Replay, recording_at_once
from dflash.target.target import Target
from dflash.target.used import implementations

PROMPTS = [list(range(1, 1 + length)) for length in (5, 17, 9)]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("dflash.replay.Tracing.warm_up_calls", 2)


def replaying(target: Target) -> Target:
    return Target(target.model, name=target.name, replay=True)


@pytest.mark.parametrize("family", [*ATTENTION_FAMILIES, *HYBRID_FAMILIES])
@pytest.mark.parametrize("verifier", [Match(), DDTree(num_nodes=6)], ids=["chain", "tree"])
def test_decoding_is_the_same(family, verifier):
    eager = tiny_target(family)
    if verifier.needs_tree and eager.plan.recurrent:
        pytest.skip("no trees over recurrent layers")
    replayed = replaying(eager)
    told = [implementations(target)["decoding steps"] for target in (eager, replayed)]
    assert told == ["eager", "eager" if family in HYBRID_FAMILIES else "replayed"]
    draft = tiny_draft(eager)
    results, decoders = [], []
    for target in (eager, replayed):
        decoder = SpeculativeDecoder(target, draft, verifier=verifier)
        decoders.append(decoder)
        traces, _ = decoder.generate(PROMPTS, max_new_tokens=24)
        own, _ = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=24)
        assert [t.tokens for t in traces] == [t.tokens for t in own]
        results.append(traces)
    assert results[0] == results[1]
    if family in HYBRID_FAMILIES:
        assert replayed.recorder is None
        return
    recordings = sum(replay.num_recordings for replay in replayed.replays.values())
    refusals = {replay.refused for replay in replayed.replays.values()} - {None}
    assert recordings > 0 and not refusals
    drafting = decoders[1].proposer.recordings
    [work] = drafting.works.values()  # from the anchors to the chain or to the tree in one pass
    for replay in (work, drafting.extend):
        assert replay.num_recordings > 0 and replay.refused is None
    assert drafting.slots.num_recordings == 0
    assert decoders[0].proposer.recordings is None


@pytest.mark.parametrize("family", ["gpt_oss", "gemma3", "mistral"])
@pytest.mark.parametrize("verifier", [Match(), DDTree(num_nodes=6)], ids=["chain", "tree"])
@pytest.mark.parametrize("lengths", [(310,), (290, 140, 9)], ids=["alone", "ragged"])
def test_far_behind_the_window_decoding_is_the_same(family, verifier, lengths):
    """Sliding layers, of target and draft, are shown the end of the context only."""
    eager = tiny_target(family)
    draft = tiny_draft(eager, layout=alternating_layout(window=7))
    ids = torch.randint(0, 60, (max(lengths),), generator=torch.Generator().manual_seed(2)).tolist()
    prompts, found = [ids[:length] for length in lengths], []
    for target in (eager, replaying(eager)):
        traces, _ = SpeculativeDecoder(target, draft, verifier=verifier).generate(prompts, max_new_tokens=12)
        found.append(traces)
        session = target.open(1, capacity=400)
        session.advance(torch.tensor([ids[:300]]))
        session.keep(torch.tensor([300]), lengths=[300])
        session.advance(torch.tensor([ids[:4]]))
        widths = {
            layer.window: view.num for layer in session.cache.layers for view in [session.cache.views[layer.window]]
        }
        assert widths[16] == (160 if target.recorder is not None else 19)
    assert found[0] == found[1]
    own = [eager_tokens(eager, prompt, 12) for prompt in prompts]
    assert [list(trace.tokens) for trace in found[0]] == own


def eager_tokens(target: Target, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of transformers' own forward, the whole text anew for each."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(target.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_the_verdict_on_greedy_chains_is_recorded():
    target, verifier = replaying(tiny_target("gpt_oss")), Match()
    SpeculativeDecoder(target, tiny_draft(target), verifier=verifier).generate(PROMPTS, max_new_tokens=24)
    assert verifier.greedy_verdict.num_recordings > 0 and verifier.greedy_verdict.refused is None


@pytest.mark.parametrize("kind", ["markov", "dspark", "gru", "selector"])
@pytest.mark.parametrize("verifier", [Match(), DDTree(num_nodes=6), CaDDTree(max_nodes=5, costs=linear_costs(5))])
@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["ragged", "alone"])
def test_what_a_head_proposes_is_recorded(kind, verifier, prompts):
    eager = tiny_target("gpt_oss")
    draft = headed_draft(eager, kind)
    found = []
    for target in (eager, replaying(eager)):
        decoder = SpeculativeDecoder(target, draft, verifier=verifier)
        with recording_at_once():  # nothing may have been called before a recording is made
            found.append(decoder.generate(prompts, max_new_tokens=24)[0])
    assert found[0] == found[1]
    [work] = decoder.proposer.recordings.works.values()
    assert work.num_recordings > 0 and work.refused is None


def test_recordings_are_of_one_target():
    """A draft's proposer that is opened over another target of the same shape proposes by that one's lm_head."""
    first, second = (replaying(tiny_target("gpt_oss", seed=seed)) for seed in (0, 1))
    proposer = proposer_of(headed_draft(first, "markov"))
    for target in (first, second, first):
        decoder = SpeculativeDecoder(target, proposer)
        own = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=24)[0]
        assert [t.tokens for t in decoder.generate(PROMPTS, max_new_tokens=24)[0]] == [t.tokens for t in own]
        assert proposer.recordings.target is target


@pytest.mark.parametrize("verifier", [Rejection(), Adaptive(threshold=0.1)], ids=["rejection", "adaptive"])
def test_sampled_and_adaptive_chains_are_the_same(verifier):
    eager = tiny_target("gpt_oss")
    draft, sampling = headed_draft(eager, "dspark"), Sampling(temperature=1.0, seed=3)
    found = [
        SpeculativeDecoder(target, draft, verifier=verifier, sampling=sampling).generate(PROMPTS, max_new_tokens=24)[0]
        for target in (eager, replaying(eager))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("proposing", [lambda target: headed_draft(target, "markov"), lambda target: Lookup()])
def test_a_warm_up_makes_all_recordings_that_the_prompts_need(monkeypatch, proposing):
    """Whose lengths round up to 128 and to 256: while they are timed, nothing is recorded any more."""
    target, prompts = replaying(tiny_target("gpt_oss")), [list(range(1, 30)), [1, 2, 3] * 30]
    record, recorded, seen = Replay._record, [], []
    monkeypatch.setattr(Replay, "_record", lambda *given: recorded.append(1) or record(*given))
    measure(
        target,
        proposing(target),
        prompts,
        label="x",
        max_new_tokens=60,
        stop_token_ids=(),
        block_size=4,
        on_tokens=lambda count: seen.append(len(recorded)),
    )
    assert seen[0] == seen[-1] >= 4


def test_eager_experts_are_not_recorded():
    """transformers' loop runs over the experts that were chosen: its control flow depends on values."""
    eager = tiny_target("gpt_oss")
    eager.model.set_experts_implementation("eager")
    target = replaying(eager)
    traces, _ = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=24)
    assert traces == AutoregressiveDecoder(eager).generate(PROMPTS, max_new_tokens=24)[0]
    [replay] = target.replays.values()
    assert replay.num_recordings == 0
    assert "control flow may depend on values" in replay.refused


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt_oss", "gemma3", "llama"])
def test_states_are_the_same_bit_for_bit(family):
    """Against the eager pass over the same rounded number of slots."""
    eager = tiny_target(family)
    replayed = replaying(eager)
    generator = torch.Generator().manual_seed(0)
    session = replayed.open(2, capacity=120, taps=(1,))
    other = replaying(eager).open(2, capacity=120, taps=(1,))
    other.target.replays[(1,)] = _Never(other.target)
    longest = 0
    for width in (9, *[4] * 10, *[1] * 10):
        ids = torch.randint(0, 60, (2, width), generator=generator)
        states = [s.advance(ids) for s in (session, other)]
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
        longest += width
        for s in (session, other):
            s.keep(torch.full((2,), width), lengths=[longest] * 2)
    assert replayed.replays[(1,)].num_recordings == 2


class _Never:
    """Always the eager pass."""

    def __init__(self, target: Target):
        self.target = target

    def __call__(self, *tensors):
        return self.target._replayable((1,), *tensors)
