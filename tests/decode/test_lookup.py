"""Prompt lookup: what it finds, by hand and by brute force; through every verifier the output stays the target's."""

from __future__ import annotations

import pytest
import torch
from toys import random_prompts, tiny_target
from verifiers import REPEATING, VERIFIERS

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.lookup import Lookup, NgramIndex
from dflash.decode.sampling import Sampling
from dflash.decode.verify import CaDDTree, Rejection

PROMPTS = random_prompts((3, 11, 7, 30))
NEW_TOKENS = 24


def propose(text: list[int], count: int, *, longest: int = 3, shortest: int = 1) -> list[int]:
    index = NgramIndex(longest=longest, shortest=shortest)
    index.extend(text[:-1])
    return index.propose(text[-1], count)


def brute_force(text: list[int], count: int, *, longest: int, shortest: int) -> list[int]:
    for n in range(longest, shortest - 1, -1):
        for end in range(len(text) - 1, n - 1, -1):
            if len(text) > n and text[end - n : end] == text[-n:]:
                grown = list(text)
                for index in range(end, end + count):
                    grown.append(grown[index])
                return grown[len(text) :]
    return []


def test_the_longest_and_then_the_newest_match_is_copied():
    assert propose([1, 2, 3, 9, 5, 3, 8, 2, 3], 2) == [9, 5]  # 2 3 stands at the start; 3 alone is newer
    assert propose([3, 7, 4, 3, 8, 6, 3], 2) == [8, 6]
    assert propose([1, 2, 3], 4) == []


def test_a_copy_that_reaches_the_end_goes_on_with_itself():
    assert propose([5, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert propose([4, 4], 3) == [4, 4, 4]


def test_ngrams_shorter_than_wanted_are_no_match():
    assert propose([3, 7, 4, 3], 2, shortest=2) == []
    assert propose([3, 7, 4, 3, 7], 2, shortest=2) == [4, 3]


@pytest.mark.parametrize(("longest", "shortest"), [(1, 1), (3, 1), (4, 2)])
def test_equal_to_brute_force_on_random_texts(longest, shortest):
    generator = torch.Generator().manual_seed(0)
    found = 0
    for length in range(1, 40):
        text = torch.randint(0, 4, (length,), generator=generator).tolist()
        expected = brute_force(text, 6, longest=longest, shortest=shortest)
        assert propose(text, 6, longest=longest, shortest=shortest) == expected
        found += bool(expected)
    assert found > 20


def test_text_that_comes_in_pieces_is_indexed_as_one():
    whole, pieces = NgramIndex(longest=3, shortest=1), NgramIndex(longest=3, shortest=1)
    text = torch.randint(0, 5, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    whole.extend(text)
    for at in range(0, 50, 7):
        pieces.extend(text[at : at + 7])
    assert (whole.tokens, whole._ends) == (pieces.tokens, pieces._ends)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", REPEATING)
def test_every_verifier_gives_the_targets_own_output(name, temperature):
    target = tiny_target("gpt_oss")
    sampling = Sampling(temperature=temperature, seed=5)
    plain, _ = AutoregressiveDecoder(target, sampling=sampling).generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    decoder = SpeculativeDecoder(target, Lookup(), block_size=6, sampling=sampling, verifier=VERIFIERS[name])
    traces, _ = decoder.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    assert [trace.tokens for trace in traces] == [trace.tokens for trace in plain]


@pytest.mark.parametrize("block_size", [1, 2, 8])
def test_loops_are_followed_and_rows_do_not_depend_on_their_batch(block_size):
    target = tiny_target("qwen3")
    prompts = [[7, 9, 11] * 6, *PROMPTS]
    plain, _ = AutoregressiveDecoder(target).generate(prompts, max_new_tokens=60)
    decoder = SpeculativeDecoder(target, Lookup(), block_size=block_size)
    traces, _ = decoder.generate(prompts, max_new_tokens=60)
    assert [trace.tokens for trace in traces] == [trace.tokens for trace in plain]
    for prompt, trace in zip(prompts, traces, strict=True):
        assert decoder.generate([prompt], max_new_tokens=60)[0][0].lengths == trace.lengths
    longest = max(length for trace in traces for length in trace.lengths)
    assert longest == block_size  # tiny greedy targets end in loops


def test_where_no_row_has_a_match_the_target_takes_a_plain_step():
    target = tiny_target("qwen3")
    [trace], _ = SpeculativeDecoder(target, Lookup(shortest=3), block_size=8).generate([[1, 2, 3]], max_new_tokens=3)
    assert set(trace.nodes) == {0}


def test_rejection_sampling_accepts_as_often_as_matching():
    """Proposals are certain, so that q = 1 and both accept with the target's probability of the token."""
    target = tiny_target("qwen3", sharpness=14.0)
    prompts = random_prompts((20,) * 40)
    means = []
    for verifier in (None, Rejection()):
        decoder = SpeculativeDecoder(target, Lookup(), sampling=Sampling(temperature=1.0, seed=1), verifier=verifier)
        traces, _ = decoder.generate(prompts, max_new_tokens=40)
        lengths = [length for trace in traces for length in trace.lengths]
        means.append(sum(lengths) / len(lengths))
    assert means[0] == pytest.approx(means[1], rel=0.15)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"baselines\.lookup\.shortest=0: must be at least 1 and at most longest=3"):
        Lookup(shortest=0)
    with pytest.raises(ValueError, match=r"verify=caddtree: weighs the cost of a draft's pass"):
        SpeculativeDecoder(tiny_target("qwen3"), Lookup(), verifier=CaDDTree()).generate([[1, 2]], max_new_tokens=4)
