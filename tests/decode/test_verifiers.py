"""Every verifier, greedy and sampled, gives the target's own output; each gains what it should; so do streams."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from scripted import ScriptedDraft, always_wrong, patchy, perfect
from torch.overrides import TorchFunctionMode
from toys import ATTENTION_FAMILIES, plain_batch, random_prompts, tiny_draft, tiny_target
from verifiers import REPEATING, VERIFIERS, linear_costs

from dflash.decode import decoder as decoder_module
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Adaptive, CaDDTree, DDTree, Match, RoundCosts, measure_costs
from dflash.draft.layout import alternating_layout, full_layout

PROMPTS = random_prompts((3, 11, 7, 30))
NEW_TOKENS = 16
GREEDY = Sampling()
CUT = Sampling(temperature=1.0, seed=5, top_k=40, top_p=0.95, min_p=0.01)
LAYOUTS = {"full": full_layout(), "alternating": alternating_layout(window=9)}
OTHERS = [name for name in VERIFIERS if name != "chain"]  # chains have test_lossless


@cache
def world(family: str, sampling: Sampling = GREEDY):
    """(target, the baseline's traces, each prompt with a continuation longer than any block reaches)."""
    target = tiny_target(family)
    traces, _ = AutoregressiveDecoder(target, sampling=sampling).generate(PROMPTS, max_new_tokens=NEW_TOKENS + 12)
    sequences = [prompt + list(trace.tokens) for prompt, trace in zip(PROMPTS, traces, strict=True)]
    return target, [trace.tokens[:NEW_TOKENS] for trace in traces], sequences


def decode(target, draft, verifier, *, block_size: int, sampling=GREEDY, prompts=PROMPTS, **options):
    decoder = SpeculativeDecoder(target, draft, block_size=block_size, sampling=sampling, verifier=verifier)
    return decoder.generate(prompts, max_new_tokens=NEW_TOKENS, **options)[0]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_a_random_draft_loses_nothing(family, layout, name):
    target, expected, _ = world(family)
    draft = tiny_draft(target, layout=LAYOUTS[layout])
    for block_size in (2, 8):
        traces = decode(target, draft, VERIFIERS[name], block_size=block_size)
        assert [trace.tokens for trace in traces] == expected
        alone = decode(target, draft, VERIFIERS[name], block_size=block_size, prompts=PROMPTS[2:3])
        assert alone[0].tokens == expected[2]


@pytest.mark.parametrize("name", [name for name in OTHERS if name in REPEATING])
@pytest.mark.parametrize("family", ["gpt_oss", "qwen3"])
def test_sampled_output_is_the_baselines(family, name):
    target, expected, _ = world(family, CUT)
    draft = tiny_draft(target)
    for block_size in (1, 5):
        traces = decode(target, draft, VERIFIERS[name], block_size=block_size, sampling=CUT)
        assert [trace.tokens for trace in traces] == expected
    assert expected != world(family)[1]


@pytest.mark.parametrize("script", [perfect, patchy, always_wrong])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("family", ["gpt_oss", "qwen3"])
def test_scripted_drafts(family, name, script):
    """The perfect draft, sure of itself, is accepted whole; a draft that is wrong and sure of it harms nothing."""
    target, expected, sequences = world(family)
    draft = ScriptedDraft(target, tiny_draft(target).shape, sequences, script, sureness=30.0)
    for block_size in (4, 8):
        traces = decode(target, draft, VERIFIERS[name], block_size=block_size)
        assert [trace.tokens for trace in traces] == expected
        if script is perfect:
            rounds = -(-(NEW_TOKENS - 1) // block_size)
            assert all(len(trace.lengths) == rounds for trace in traces)
            assert {length for trace in traces for length in trace.lengths[:-1]} == {block_size}


class SecondBest(ScriptedDraft):
    """Right everywhere, but in each block's first slot with its second choice."""

    def open(self, batch_size: int, *, capacity: int, room: int | None = None):
        session, weight = super().open(batch_size, capacity=capacity), self.target.lm_head.weight
        sure = session.propose

        def propose(noise_BKH):
            hidden = sure(noise_BKH)
            right = self.target.logits(hidden[:, 1]).argmax(-1)
            hidden[:, 1] = 30 * weight[(right + 1) % 64] + 29 * weight[right]
            return hidden

        session.propose = propose
        return session


def test_a_tree_finds_what_the_chain_misses():
    target, expected, sequences = world("qwen3")
    draft = SecondBest(target, tiny_draft(target).shape, sequences, perfect, sureness=30.0)
    chain = decode(target, draft, Match(), block_size=5)
    tree = decode(target, draft, DDTree(num_nodes=12), block_size=5)
    assert [t.tokens for t in chain] == [t.tokens for t in tree] == expected
    assert {length for trace in chain for length in trace.lengths} == {1}
    assert {trace.lengths for trace in tree} == {(5, 5, 5)}


def test_a_path_through_the_tree_feeds_the_draft_what_a_chain_would():
    """After a whole tree path is accepted, the draft session holds the context that teacher forcing gives."""
    target, _, sequences = world("gpt_oss")
    wide = DDTree(num_nodes=60)
    draft = tiny_draft(target)
    traces = decode(target, draft, wide, block_size=8)
    assert any(length > 1 for trace in traces for length in trace.lengths)
    session = draft.open(1, capacity=80)
    kept = {}
    original = type(session).extend

    def spy(self, taps_BQTH, counts_B, **more):
        at = int(self.lengths_B[0])
        for q in range(int(counts_B[0])):
            kept[at + q] = taps_BQTH[0, q]
        original(self, taps_BQTH, counts_B, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(session), "extend", spy)
        decode(target, draft, wide, block_size=8, prompts=PROMPTS[1:2])
    ids = torch.tensor([sequences[1][: len(kept)]])
    expected = target.features(plain_batch(ids), draft.shape.taps).taps_BSTH[0]
    assert float((torch.stack([kept[i] for i in range(len(kept))]) - expected).abs().max()) < 5e-5


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("sampling", [GREEDY, CUT], ids=["greedy", "sampled"])
def test_a_stream_is_what_generate_gives(sampling, name):
    target, expected, sequences = world("qwen3", sampling)
    stop = expected[1][9]
    draft = ScriptedDraft(target, tiny_draft(target).shape, sequences[1:2], patchy, sureness=30.0)
    if sampling is CUT and name not in REPEATING:
        draft = tiny_draft(target)  # its output is no script's
    decoder = SpeculativeDecoder(target, draft, block_size=6, sampling=sampling, verifier=VERIFIERS[name])
    options = {"max_new_tokens": NEW_TOKENS, "stop_token_ids": (stop,), "first_index": 1}
    [trace], timing = decoder.generate(PROMPTS[1:2], **options)
    streamed = list(decoder.stream(PROMPTS[1], **options))
    assert tuple(token.token for token in streamed) == trace.tokens
    by_round = [list(tokens) for _, tokens in itertools.groupby(streamed, key=lambda token: token.round)]
    assert [token.round for token in streamed][-1] == timing.num_rounds == len(by_round) - 1
    assert tuple(len(tokens) for tokens in by_round) == (1, *trace.lengths)
    assert not streamed[0].drafted
    for tokens in by_round[1:-1]:  # the last one may be cut
        assert [token.drafted for token in tokens] == [True] * (len(tokens) - 1) + [False]


def test_a_stream_comes_round_by_round():
    target, _, sequences = world("qwen3")
    draft = ScriptedDraft(target, tiny_draft(target).shape, sequences[:1], perfect)
    calls = []
    original = draft.open

    def open_and_count(*arguments, **options):
        session = original(*arguments, **options)
        propose = session.propose
        session.propose = lambda noise: calls.append(1) or propose(noise)
        return session

    draft.open = open_and_count
    stream = SpeculativeDecoder(target, draft, block_size=4).stream(PROMPTS[0], max_new_tokens=NEW_TOKENS)
    next(stream)
    assert not calls
    next(stream)
    assert len(calls) == 1


class HostSyncs(TorchFunctionMode):
    """Counts what makes the host wait for a device."""

    WAITING = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero", "cpu", "numpy")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function.__name__ in self.WAITING
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "syncs"), [("chain", 1), ("rejection", 1), ("ddtree", 1), ("adaptive", 2), ("caddtree", 2)]
)
@pytest.mark.parametrize("sampling", [GREEDY, CUT], ids=["greedy", "sampled"])
def test_host_syncs_of_a_round(sampling, name, syncs):
    target, _, _ = world("llama")
    decoder = SpeculativeDecoder(target, tiny_draft(target), block_size=4, sampling=sampling, verifier=VERIFIERS[name])
    decoder.generate(PROMPTS[:1], max_new_tokens=4)  # index tensors that are made once
    counts = {}
    for limit in (4, 12):
        with HostSyncs() as mode:
            _, timing = decoder.generate(PROMPTS[:1], max_new_tokens=limit)
        counts[timing.num_rounds] = mode.count
    (few, low), (many, high) = sorted(counts.items())
    assert many > few
    assert high - low == syncs * (many - few)


# How many nodes pay.


def test_the_number_of_nodes_is_the_one_that_pays_most():
    costs = RoundCosts(2.0, (1.0, 1.1, 1.2, 3.0, 3.1))
    gains = [0.9, 0.5, 0.4, 0.3]
    rates = [(2 + sum(gains[:n])) / (2.0 + costs.verify_seconds[n]) for n in range(5)]
    assert costs.best_count(2, gains) == rates.index(max(rates)) == 2
    assert RoundCosts(1.0, (1.0,) * 5).best_count(1, gains) == 4  # more for nothing
    assert RoundCosts(1e-9, (1.0, 9.0, 9.9)).best_count(1, gains[:2]) == 0
    few = RoundCosts(2.0, (1.0, 1.1, 1.2, 3.0, 3.1), counts=(0, 1, 4))
    assert few.best_count(2, gains) == max((0, 1, 4), key=lambda n: rates[n])
    assert RoundCosts(1.0, (1.0,) * 5, counts=(0, 1, 4)).best_count(1, gains[:3]) == 1, "4 proposals are not to be had"


def test_costs_decide_the_nodes_and_never_the_output():
    target, expected, _ = world("gpt_oss")
    draft = tiny_draft(target)
    nodes = {}
    for each in (0.0, 0.05, 100.0):
        traces = decode(target, draft, CaDDTree(max_nodes=24, costs=linear_costs(24, each=each)), block_size=8)
        assert [trace.tokens for trace in traces] == expected
        nodes[each] = {count for trace in traces for count in trace.nodes}
    assert nodes[0.0] == {24}
    assert nodes[100.0] == {0}
    assert len(nodes[0.05]) > 1


def test_costs_are_timed_once_for_each_batch_size(monkeypatch):
    target, expected, _ = world("qwen3")
    asked = []

    def spy(*arguments, **options):
        asked.append(options["batch_size"])
        assert options["grow"] is not None, "a tree costs more than a chain"
        return measure_costs(*arguments, **options)

    monkeypatch.setattr(decoder_module, "measure_costs", spy)
    decoder = SpeculativeDecoder(target, tiny_draft(target), block_size=4, verifier=CaDDTree(max_nodes=6))
    for prompts in (PROMPTS, PROMPTS, PROMPTS[:1]):
        traces, _ = decoder.generate(prompts, max_new_tokens=NEW_TOKENS)
        assert [trace.tokens for trace in traces] == expected[: len(prompts)]
    assert asked == [4, 1]
    costs = measure_costs(target, decoder.proposer, batch_size=2, block_size=4, max_proposals=6)
    assert costs.max_proposals == 6 and costs.counts == (0, 1, 3, 6)
    assert list(costs.verify_seconds) == sorted(costs.verify_seconds)
    assert costs.draft_seconds > 0


def test_a_confident_draft_proposes_more():
    target, expected, sequences = world("qwen3")
    widths = {}
    for sureness in (1.0, 30.0):
        draft = ScriptedDraft(target, tiny_draft(target).shape, sequences, perfect, sureness=sureness)
        traces = decode(target, draft, Adaptive(threshold=0.5), block_size=5)
        assert [trace.tokens for trace in traces] == expected
        widths[sureness] = {count for trace in traces for count in trace.nodes}
    assert widths == {1.0: {0}, 30.0: {4}}


def test_trees_over_recurrent_layers_are_refused_in_one_sentence():
    target = tiny_target("lfm2")
    draft = tiny_draft(target)
    for verifier in (DDTree(), CaDDTree()):
        with pytest.raises(ValueError, match=r"layers of type conv .* cannot branch"):
            SpeculativeDecoder(target, draft, verifier=verifier)
    own, _ = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=8)
    traces = SpeculativeDecoder(target, draft, block_size=4, verifier=VERIFIERS["adaptive"]).generate(
        PROMPTS, max_new_tokens=8
    )[0]
    assert [trace.tokens for trace in traces] == [trace.tokens for trace in own]


def test_values_out_of_bounds_are_refused():
    for make, key in (
        (lambda: DDTree(num_nodes=0), "num_nodes=0"),
        (lambda: CaDDTree(max_nodes=0), "max_nodes=0"),
        (lambda: CaDDTree(max_nodes=9, costs=linear_costs(8)), "max_nodes=9: its costs end at 8"),
        (lambda: Adaptive(threshold=1.5), "threshold=1.5"),
        (lambda: Adaptive(chain=DDTree()), "chain=ddtree"),
        (lambda: RoundCosts(0.0, (1.0,)), "must be above 0"),
    ):
        with pytest.raises(ValueError, match=key):
            make()
