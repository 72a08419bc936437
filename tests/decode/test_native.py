"""transformers' own DFlash generation as an oracle: the same tokens and the same gains, round by round."""

from __future__ import annotations

import pytest
from native import native_generate
from taught import teach
from toys import random_prompts, tiny_draft, tiny_target

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.draft.layout import alternating_layout, full_layout

TAUGHT = random_prompts((4, 9, 21))
PROMPTS = TAUGHT + random_prompts((6, 13), seed=8)  # the draft has never seen the last two
LAYOUTS = {"full": full_layout(), "alternating": alternating_layout(window=9)}


@pytest.fixture(scope="module", params=["gpt_oss", "qwen3"])
def taught(request):
    """(target, layout -> a draft that is right now and then)."""
    target = tiny_target(request.param)
    traces, _ = AutoregressiveDecoder(target).generate(TAUGHT, max_new_tokens=45)
    sequences = [prompt + list(trace.tokens) for prompt, trace in zip(TAUGHT, traces, strict=True)]
    drafts = {}
    for name, layout in LAYOUTS.items():
        draft = tiny_draft(target, block_size=8, layout=layout, sharpness=2.0)
        drafts[name] = teach(target, draft, sequences, steps=40)
    return target, drafts


@pytest.mark.parametrize("block_size", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_tokens_and_same_gains_as_transformers(taught, layout, block_size):
    target, drafts = taught
    draft = drafts[layout]
    decoder = SpeculativeDecoder(target, draft, block_size=block_size)
    traces, _ = decoder.generate(PROMPTS, max_new_tokens=28)  # our batch of five against its batches of one
    gains = set()
    for prompt, trace in zip(PROMPTS, traces, strict=True):
        tokens, lengths = native_generate(target, draft, prompt, block_size=block_size, max_new_tokens=28)
        assert tokens == list(trace.tokens)
        assert lengths == trace.lengths
        gains |= set(lengths)
    assert 1 in gains  # rejections, and gains of many lengths
    assert len(gains) >= min(block_size, 4)
