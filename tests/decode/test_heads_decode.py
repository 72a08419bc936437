"""Drafts with heads: whatever the head, the output is the target's own, and the chain walk foretells what it gains."""

from __future__ import annotations

import time
from functools import cache

import pytest
import test_sampling
import torch
from heads import HEADS, headed_draft
from taught import teach
from toys import random_prompts, tiny_draft, tiny_target
from verifiers import VERIFIERS, linear_costs

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.proposer import proposer_of
from dflash.decode.sampling import Sampling
from dflash.decode.verify import Adaptive, CaDDTree, DDTree, Match, Rejection, measure_costs, measure_proposing
from dflash.decode.verify.growth import grow, grow_linked
from dflash.draft.heads.slots import make_slots
from dflash.evaluation.acceptance import chain_walk

small = test_sampling.small  # the fixture
PROMPTS = random_prompts((3, 11, 7, 30))
NEW_TOKENS = 16
GREEDY = Sampling()
CUT = Sampling(temperature=1.0, seed=5, top_k=40, top_p=0.95, min_p=0.01)
ALL = VERIFIERS | {"trained": Adaptive(threshold=0.3, trained=True)}
CASES = [(head, name) for head in HEADS for name in ALL if head == "dspark" or name != "trained"]


@cache
def world(family: str, sampling: Sampling = GREEDY):
    """(target, the baseline's outputs)."""
    target = tiny_target(family)
    traces, _ = AutoregressiveDecoder(target, sampling=sampling).generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    return target, [trace.tokens for trace in traces]


@cache
def taught(head: str | None):
    """A draft that is right now and then, by this head as well as by its body."""
    target, outputs = world("qwen3")
    draft = tiny_draft(target) if head is None else headed_draft(target, head, stirred=False)
    with torch.no_grad():
        for parameter in [] if head is None else draft.head.parameters():
            parameter.mul_(10)  # still the identity, but quick to learn
    teach(target, draft, [prompt + list(tokens) for prompt, tokens in zip(PROMPTS, outputs, strict=True)], steps=12)
    return draft


def decode(target, draft, verifier, *, block_size: int, sampling=GREEDY, prompts=PROMPTS, first_index=0):
    decoder = SpeculativeDecoder(target, draft, block_size=block_size, sampling=sampling, verifier=verifier)
    return decoder.generate(prompts, max_new_tokens=NEW_TOKENS, first_index=first_index)[0]


@pytest.mark.parametrize(("head", "name"), CASES)
def test_greedy_output_is_the_targets_own(head, name):
    target, expected = world("qwen3")
    lengths = set()
    for block_size in (1, 2, 16) if name == "chain" else (8,):
        traces = decode(target, taught(head), ALL[name], block_size=block_size)
        assert [trace.tokens for trace in traces] == expected
        lengths |= {length for trace in traces for length in trace.lengths}
    alone = decode(target, taught(head), ALL[name], block_size=block_size, prompts=PROMPTS[1:2])
    assert alone[0].tokens == expected[1] and (name == "caddtree" or alone == [traces[1]])
    assert len(lengths) > 1 or name in ("trained", "adaptive", "adaptive rejection"), "nothing was accepted"


@pytest.mark.parametrize("head", HEADS)
def test_a_random_head_loses_nothing(head):
    target, expected = world("gpt_oss")
    for name in ("chain", "ddtree"):
        traces = decode(target, headed_draft(target, head), ALL[name], block_size=4)
        assert [trace.tokens for trace in traces] == expected


@pytest.mark.parametrize(("head", "name"), [case for case in CASES if ALL[case[1]].repeats_target])
def test_sampled_output_is_the_targets_own(head, name):
    target, expected = world("gpt_oss", CUT)
    draft = headed_draft(target, head)
    assert [trace.tokens for trace in decode(target, draft, ALL[name], block_size=5, sampling=CUT)] == expected


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("block_size", [2, 8])
def test_the_chain_walk_foretells_real_decoding(head, block_size):
    target, outputs = world("qwen3")
    draft = taught(head)
    traces = decode(target, draft, Match(), block_size=block_size)
    assert chain_walk(target, draft, PROMPTS, outputs, block_size=block_size) == [trace.lengths for trace in traces]
    plain = tiny_draft(target)
    plain.load_state_dict({k: v for k, v in draft.state_dict().items() if not k.startswith("head.")})
    without = decode(target, plain, Match(), block_size=8)
    assert block_size != 8 or [t.lengths for t in without] != [t.lengths for t in traces], "the head decides nothing"


@pytest.mark.parametrize("head", HEADS)
def test_a_fresh_head_decodes_as_no_head_does(head):
    target, _ = world("qwen3")
    plain = taught(None)
    draft = headed_draft(target, head, stirred=False)
    missing, unexpected = draft.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)
    # A selector knows of no token but its candidates, which makes their probabilities, and so a tree, others.
    trees = [] if draft.shape.head.restricts else [DDTree(num_nodes=5)]
    for verifier in (Match(), Rejection(), *trees):
        assert decode(target, draft, verifier, block_size=8) == decode(target, plain, verifier, block_size=8)


SAMPLED = [("markov", "rejection"), ("gru", "rejection"), ("selector", "rejection"), ("gru", "adaptive rejection")]


@pytest.mark.parametrize(("head", "name"), [*SAMPLED, ("dspark", "trained rejection")])
def test_samples_have_the_targets_joint_distribution(small, head, name):
    """Rejection must judge a token by the distribution it was drawn from: that behind the tokens drawn before it."""
    draft = headed_draft(small[0], head, block_size=4)
    verifiers = VERIFIERS | {"trained rejection": Adaptive(threshold=0.5, trained=True, chain=Rejection())}
    if head == "dspark":  # a confidence that depends on the tokens drawn, and so a length that does
        with torch.no_grad():
            draft.head.confidence_proj.weight[:, : small[0].dims.hidden_size] = 0
            draft.head.confidence_proj.bias.fill_(1)
    assert abs(test_sampling.deviation((small[0], draft, *small[2:]), verifiers[name])) < 3.5


class Forgetful(Rejection):
    """Wrong on purpose: it judges tokens by what the draft said without its head."""

    def propose(self, slots, sampling, uniforms, start_B):
        made = super().propose(slots, sampling, uniforms, start_B)
        return type(made)(made.tokens_BP, sampling.probabilities(slots.logits_BDV))


def test_rejection_by_the_wrong_distribution_is_found_out(small):
    draft = headed_draft(small[0], "markov", block_size=4)
    assert abs(test_sampling.deviation((small[0], draft, *small[2:]), Forgetful())) > 5


def test_samples_do_not_depend_on_the_batch():
    target, _ = world("gpt_oss")
    draft = headed_draft(target, "gru")
    together = decode(target, draft, Rejection(), block_size=6, sampling=CUT, first_index=4)
    for row, prompt in enumerate(PROMPTS):
        alone = decode(target, draft, Rejection(), block_size=6, sampling=CUT, prompts=[prompt], first_index=4 + row)
        assert alone == [together[row]]


# Trees.


def linked_slots(target, draft, *, num_slots: int = 4, rows: int = 2):
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(rows, num_slots, target.dims.hidden_size, generator=generator)
    anchors = torch.randint(0, target.dims.vocab_size - 1, (rows,), generator=generator)
    return make_slots(draft.head, target.logits(hidden), hidden, anchors, target.embed)


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_tree_holds_the_best_paths_by_conditional_probability(head):
    """Against every path of three slots over a small vocabulary, written out."""
    target = tiny_target("qwen3", vocab_size=8)
    draft = headed_draft(target, head)
    slots = linked_slots(target, draft, num_slots=3)
    grown = grow_linked(slots, lambda logits: logits.log_softmax(-1), num_nodes=20)
    for b in range(2):
        scored = []
        for number in range(8 + 64 + 512):
            depth = 1 if number < 8 else 2 if number < 72 else 3
            rest = number - (0, 8, 72)[depth - 1]
            path = tuple(rest // 8**i % 8 for i in reversed(range(depth)))
            tokens = torch.tensor([[*path, 0, 0][:3]]).expand(2, -1)
            logs = slots.walk(lambda logits, part, tokens=tokens: tokens[:, part]).logits_BDV[b].log_softmax(-1)
            scored.append((sum(float(logs[i, token]) for i, token in enumerate(path)), path))
        best = {path for _, path in sorted(scored, reverse=True)[:20]}
        paths = {0: ()}
        for node in range(1, 21):
            paths[node] = (*paths[int(grown.parents_BN[b, node - 1])], int(grown.tokens_BN[b, node - 1]))
        assert {path for node, path in paths.items() if node} == best
        assert list(grown.depths_BN[b]) == [len(paths[node]) for node in range(1, 21)]


@torch.no_grad()
def test_a_fresh_heads_tree_is_the_plain_tree():
    target = tiny_target("qwen3")
    slots = linked_slots(target, headed_draft(target, "gru", stirred=False))
    linked = grow_linked(slots, lambda logits: logits.log_softmax(-1), num_nodes=40)
    plain = grow(slots.logits_BDV.log_softmax(-1), num_nodes=40)
    for name in ("tokens_BN", "parents_BN", "depths_BN"):
        assert torch.equal(getattr(linked, name), getattr(plain, name))


@torch.no_grad()
def test_paths_behind_the_breadth_end():
    """Of two followed paths a depth the tree has children only; the whole breadth is the tree without a bound."""
    target = tiny_target("qwen3")
    slots = linked_slots(target, headed_draft(target, "markov"))
    narrow, wide, free = (
        grow_linked(slots, lambda logits: logits.log_softmax(-1), num_nodes=40, breadth=breadth)
        for breadth in (2, 40, None)
    )
    assert all(torch.equal(a, b) for a, b in zip(wide.tensors, free.tensors, strict=True))
    for row in range(2):
        for depth in (1, 2, 3):
            inside = narrow.depths_BN[row] == depth + 1
            assert len(narrow.parents_BN[row][inside].unique()) <= 2
    assert not torch.equal(narrow.parents_BN, free.parents_BN)


# Confidence, and what a head costs.


def test_a_trained_confidence_decides_how_much_is_proposed():
    target, expected = world("gpt_oss")
    draft = headed_draft(target, "dspark", stirred=False)
    widths = {}
    for bias in (-9.0, 9.0):
        with torch.no_grad():
            draft.head.confidence_proj.bias.fill_(bias)
        traces = decode(target, draft, ALL["trained"], block_size=5)
        assert [trace.tokens for trace in traces] == expected
        widths[bias] = {count for trace in traces for count in trace.nodes}
    assert widths == {-9.0: {0}, 9.0: {4}}


def test_a_draft_without_confidence_is_refused_in_one_sentence():
    target, _ = world("gpt_oss")
    for draft in (tiny_draft(target), headed_draft(target, "markov")):
        with pytest.raises(ValueError, match=r"trained=true: this draft has no confidence head; .*heads=dspark"):
            SpeculativeDecoder(target, draft, verifier=ALL["trained"])


def test_costs_hold_the_heads_own_time():
    target, _ = world("gpt_oss")
    slow, plain = headed_draft(target, "gru"), tiny_draft(target)
    body, head = measure_proposing(target, proposer_of(slow), batch_size=2, block_size=8)
    assert 0 < head < 1 and 0 < body < 1
    correct = slow.head.correct
    slow.head.correct = lambda *tensors: [correct(*tensors) for _ in range(30)][-1]
    slower = measure_proposing(target, proposer_of(slow), batch_size=2, block_size=8)[1]
    assert slower > 3 * head
    assert measure_proposing(target, proposer_of(plain), batch_size=2, block_size=8)[1] < head
    costs = measure_costs(target, proposer_of(slow), batch_size=2, block_size=8, max_proposals=4)
    assert costs.draft_seconds > slower / 2
    grown = measure_costs(
        target, proposer_of(slow), batch_size=2, block_size=8, max_proposals=4, grow=lambda slots: (time.sleep(0.05),)
    )
    assert 0.05 <= grown.draft_seconds < 0.5, "a tree costs what growing it takes"
    tree = CaDDTree(max_nodes=4, costs=linear_costs(4))
    assert decode(target, headed_draft(target, "gru"), tree, block_size=8)
