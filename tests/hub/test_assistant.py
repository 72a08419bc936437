"""``target.generate(assistant_model=...)`` over exported folders: the same tokens in the same rounds as our decoder."""

from __future__ import annotations

import pytest
import torch
from spoil import edit_tensors, make_bundle
from toys import random_prompts, tiny_draft, tiny_target

from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.draft.layout import alternating_layout, full_layout, sliding_layout
from dflash.hub.assistant import DFlashAssistant, load_assistant, visible
from dflash.hub.bundle import Bundle, TargetFacts
from dflash.hub.convert import write_folder
from dflash.hub.folder import format_named
from tests.decode.taught import teach

PROMPTS = random_prompts((4, 9, 21))
NEW = 40
LAYOUTS = {
    "full": full_layout(),
    "alternating": alternating_layout(window=9),
    "sliding": sliding_layout(window=5),
    "window of one": sliding_layout(window=1),
}


@pytest.fixture(scope="module", params=["gpt_oss", "qwen3"])
def taught(request):
    """(target, its own continuations, layout -> a draft that is right now and then)."""
    target = tiny_target(request.param)
    traces, _ = AutoregressiveDecoder(target).generate(PROMPTS, max_new_tokens=NEW + 8)
    greedy = [list(trace.tokens) for trace in traces]
    sequences = [prompt + tokens for prompt, tokens in zip(PROMPTS, greedy, strict=True)]
    drafts = {}

    def draft(layout: str):
        if layout not in drafts:
            fresh = tiny_draft(target, block_size=4, layout=LAYOUTS[layout], sharpness=2.0)
            drafts[layout] = teach(target, fresh, sequences, steps=30)
        return drafts[layout]

    return target, [tokens[:NEW] for tokens in greedy], draft


def generate(target, assistant, prompt: list[int], *, padding: int = 0) -> tuple[list[int], int]:
    """(new tokens, forward passes of the target) of transformers' own loop, with ``padding`` tokens at the left."""
    passes = []
    hook = target.model.register_forward_pre_hook(lambda *_: passes.append(1))
    ids = torch.tensor([[0] * padding + prompt])
    try:
        out = target.model.generate(
            ids,
            attention_mask=(torch.arange(ids.shape[1]) >= padding).long()[None],
            assistant_model=assistant,
            speculation_type="dflash",
            do_sample=False,
            max_new_tokens=NEW,
            pad_token_id=0,
        )
    finally:
        hook.remove()
    return out[0, ids.shape[1] :].tolist(), len(passes)


def export(target, draft, folder, *, form: str = "transformers"):
    bundle = Bundle(draft.shape, TargetFacts(target.dims.vocab_size), draft.state_dict())
    write_folder(folder, format_named(form), bundle, card="")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_tokens_and_rounds_as_our_decoder(taught, layout, tmp_path):
    target, greedy, make = taught
    draft = make(layout)
    assistant = DFlashAssistant.from_pretrained(export(target, draft, tmp_path / "folder"))
    gains = set()
    for prompt, plain in zip(PROMPTS, greedy, strict=True):
        traces, _ = SpeculativeDecoder(target, draft).generate([prompt], max_new_tokens=NEW)
        tokens, passes = generate(target, assistant, prompt)
        assert tokens == list(traces[0].tokens) == plain
        assert passes == 1 + len(traces[0].lengths)  # the first is the prompt's
        gains |= set(traces[0].lengths)
    assert len(gains) >= 3  # or the rounds would say nothing


@pytest.mark.parametrize("form", ["zlab", "transformers"])
def test_any_folder_makes_an_assistant(taught, form, tmp_path):
    target, greedy, make = taught
    assistant = load_assistant(export(target, make("alternating"), tmp_path / "folder", form=form))
    tokens, passes = generate(target, assistant, PROMPTS[2])
    assert tokens == greedy[2] and passes < NEW


def test_loading_gives_the_drafts_own_weights_and_rotary_frequencies(taught, tmp_path):
    target, _, make = taught
    draft = make("full")
    assistant = DFlashAssistant.from_pretrained(export(target, draft, tmp_path / "folder"))
    assert assistant.state_dict().keys() == draft.state_dict().keys()
    assert all(torch.equal(value, draft.state_dict()[name]) for name, value in assistant.state_dict().items())
    assert torch.equal(assistant.rotary.frequencies, draft.rotary.frequencies)
    half = DFlashAssistant.from_pretrained(tmp_path / "folder", dtype=torch.bfloat16)
    assert half.fc.weight.dtype == torch.bfloat16 and half.rotary.frequencies.dtype == torch.float32
    assert torch.equal(half.rotary.frequencies, draft.rotary.frequencies)


def test_saved_again_it_loads_again(taught, tmp_path):
    target, greedy, make = taught
    assistant = DFlashAssistant.from_pretrained(export(target, make("sliding"), tmp_path / "folder"))
    assistant.save_pretrained(tmp_path / "again")
    again = DFlashAssistant.from_pretrained(tmp_path / "again")
    assert again.config.shape() == assistant.config.shape()
    assert generate(target, again, PROMPTS[1])[0] == greedy[1]


def test_padding_at_the_left_is_not_seen(taught, tmp_path):
    target, greedy, make = taught
    for layout in ("full", "sliding"):
        assistant = DFlashAssistant.from_pretrained(export(target, make(layout), tmp_path / layout))
        tokens, passes = generate(target, assistant, PROMPTS[0], padding=7)
        assert (tokens, passes) == (greedy[0], generate(target, assistant, PROMPTS[0])[1])


def test_a_folder_with_holes_is_refused_where_transformers_would_fill_them(write):
    folder = write("transformers", make_bundle())
    edit_tensors(folder, lambda tensors: tensors.pop("layers.0.self_attn.k_norm.weight"))
    with pytest.raises(ValueError, match=r"tensor layers.0.self_attn.k_norm.weight is missing; wanted \[6\]"):
        DFlashAssistant.from_pretrained(folder)


def test_what_a_slot_sees():
    """Seven positions, the last three a block; a window of three: slot i sees two behind itself, and the block."""
    seen = visible(3, 7, window=3, padding=None, device=torch.device("cpu"))[0, 0].long().tolist()
    assert seen == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]]
    padding = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])  # two positions more than the cache still holds
    assert visible(3, 7, window=None, padding=padding, device=torch.device("cpu")).all()
