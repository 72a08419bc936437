"""Decoding from recordings that are bound to memory, as CUDA graphs are: the tokens of eager decoding, recording after
recording used again by the sessions that come later."""

from __future__ import annotations

import gc

import pytest
import torch
from heads import headed_draft
from tape import TapedGraphs
from toys import ATTENTION_FAMILIES, tiny_draft, tiny_target

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.verify import DDTree, Match
from dflash.draft.layout import alternating_layout
from dflash.replay import recording_at_once
from dflash.target.target import Target
from dflash.target.used import implementations

PROMPTS = [list(range(1, 1 + length)) for length in (5, 17, 9)]


@pytest.fixture
def graphed(monkeypatch):
    """Gives a target whose steps run from taped graphs."""

    def make(target: Target) -> Target:
        monkeypatch.setattr("dflash.target.target._recorder_of", lambda model: TapedGraphs())
        return Target(target.model, name=target.name, replay=True)

    return make


@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
@pytest.mark.parametrize("verifier", [Match(), DDTree(num_nodes=6)], ids=["chain", "tree"])
def test_decoding_is_the_same_and_later_sessions_use_what_is_recorded(family, verifier, graphed):
    eager, graphs = tiny_target(family), graphed(tiny_target(family))
    assert implementations(graphs)["decoding steps"] == "CUDA graphs"
    draft = tiny_draft(eager, layout=alternating_layout(window=7))
    decoder = SpeculativeDecoder(graphs, draft, verifier=verifier)
    expected, _ = SpeculativeDecoder(eager, draft, verifier=verifier).generate(PROMPTS, max_new_tokens=24)
    captured = []
    for _ in range(3):
        with recording_at_once():
            traces, _ = decoder.generate(PROMPTS, max_new_tokens=24)
            own, _ = AutoregressiveDecoder(graphs).generate(PROMPTS, max_new_tokens=24)
        assert traces == expected
        assert [t.tokens for t in own] == [t.tokens for t in expected]
        captured.append(graphs.recorder.captures)
        gc.collect()
    assert captured[0] > 0
    assert captured[2] == captured[1]  # the buffers are where they were
    recordings = decoder.proposer.recordings
    for replay in (*graphs.replays.values(), *recordings.works.values(), recordings.extend):
        assert replay.refused is None and replay.num_recordings > 0


@pytest.mark.parametrize("kind", ["markov", "selector"])
def test_a_head_and_a_long_context_are_the_same(kind, graphed):
    """Over the border of shown slots, in sliding layers too, where a recording sees the buffer from its beginning."""
    eager, graphs = tiny_target("gpt_oss"), graphed(tiny_target("gpt_oss"))
    draft = headed_draft(eager, kind)
    prompts = [list(range(1, 50)) * 2, [3, 1, 4] * 40]
    found = []
    for target in (eager, graphs):
        decoder = SpeculativeDecoder(target, draft)
        with recording_at_once():
            found.append([decoder.generate(prompts, max_new_tokens=40)[0] for _ in range(2)])
    assert found[0] == found[1]
    assert graphs.recorder.captures > 0


def test_two_texts_that_are_decoded_in_turn_keep_to_their_own_memory(graphed):
    """Two streams, a round of one and a round of the other: sessions of one shape at one time."""
    eager, graphs = tiny_target("gpt_oss"), graphed(tiny_target("gpt_oss"))
    draft = tiny_draft(eager)
    decoder = SpeculativeDecoder(graphs, draft)
    expected = [SpeculativeDecoder(eager, draft).generate([p], max_new_tokens=24)[0][0].tokens for p in PROMPTS[:2]]
    with recording_at_once():
        for _ in range(3):
            streams = [decoder.stream(prompt, max_new_tokens=24) for prompt in PROMPTS[:2]]
            found = [[streamed.token for streamed in texts] for texts in zip(*streams, strict=True)]
            assert [tuple(text) for text in zip(*found, strict=True)] == [tuple(tokens) for tokens in expected]
    recordings = decoder.proposer.recordings
    for replay in (*graphs.replays.values(), *recordings.works.values(), recordings.extend):
        assert replay.refused is None and replay.num_recordings > 0


def test_waiting_prompts_come_to_the_memory_that_recordings_are_bound_to(graphed):
    eager, graphs = tiny_target("gpt_oss"), graphed(tiny_target("gpt_oss"))
    draft, prompts = tiny_draft(eager), [prompt[i:] for i in range(4) for prompt in PROMPTS]
    expected, _ = SpeculativeDecoder(eager, draft).generate(prompts, max_new_tokens=24)
    decoders, captured = (AutoregressiveDecoder(graphs), SpeculativeDecoder(graphs, draft)), []
    for _ in range(3):
        with recording_at_once():
            for decoder in decoders:
                traces, _ = decoder.generate(prompts, max_new_tokens=24, batch_size=3)
                assert [t.tokens for t in traces] == [t.tokens for t in expected]
        captured.append(graphs.recorder.captures)
        gc.collect()
    assert captured[0] > 0 and captured[2] == captured[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
def test_on_a_gpu(family):
    model = tiny_target(family).model.cuda()
    eager, graphs = Target(model, name=family), Target(model, name=family, replay=True)
    draft = tiny_draft(eager).cuda()
    expected, _ = SpeculativeDecoder(eager, draft).generate(PROMPTS, max_new_tokens=24)
    decoder = SpeculativeDecoder(graphs, draft)
    for _ in range(2):
        with recording_at_once():
            assert decoder.generate(PROMPTS, max_new_tokens=24)[0] == expected
    recordings = decoder.proposer.recordings
    for replay in (*graphs.replays.values(), *recordings.works.values(), recordings.extend):
        assert replay.refused is None and replay.num_recordings > 0
