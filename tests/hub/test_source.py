"""Draft folders as evaluate.py takes them: found, held against the target, and decoded with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
import torch
from spoil import SHAPE, edit_config, make_bundle
from toys import random_prompts, tiny_draft, tiny_target

from dflash.compose import check, register
from dflash.compose.keys import CONF
from dflash.decode.decoder import SpeculativeDecoder
from dflash.draft.layout import alternating_layout
from dflash.hub.against import target_findings
from dflash.hub.bundle import EMBEDDING, HEAD, Bundle, TargetFacts
from dflash.hub.convert import write_folder
from dflash.hub.folder import format_named
from dflash.hub.source import find_source
from dflash.target.families import gpt_oss_config
from dflash.target.load import LoadedTarget

SIZES = SimpleNamespace(hidden_size=32, num_layers=6, vocab_size=64)


@pytest.fixture(scope="module", params=["gpt_oss", "qwen3"])
def loaded(request) -> LoadedTarget:
    target = tiny_target(request.param)
    return LoadedTarget(target, None, target.dims.vocab_size - 1, (0,))


def bundle_of(loaded: LoadedTarget, draft) -> Bundle:
    target = loaded.target
    shared = {EMBEDDING: target.embed(torch.arange(target.dims.vocab_size)), HEAD: target.lm_head.weight.detach()}
    return Bundle(draft.shape, TargetFacts(target.dims.vocab_size), draft.state_dict(), shared)


def test_a_foreign_folder_decodes_at_once(loaded, form, tmp_path):
    draft = tiny_draft(loaded.target, layout=alternating_layout(window=9), block_size=4)
    write_folder(tmp_path / "folder", form, bundle_of(loaded, draft), card="")
    source = find_source(tmp_path / "folder")
    again, notes = source.load(loaded)
    assert notes == () and source.describe()["format"] == form.name and not again.training
    prompts = random_prompts((4, 12))
    traces = [SpeculativeDecoder(loaded.target, d).generate(prompts, max_new_tokens=20)[0] for d in (draft, again)]
    assert [(t.tokens, t.lengths) for t in traces[0]] == [(t.tokens, t.lengths) for t in traces[1]]


def test_every_difference_from_the_target_is_listed(loaded, write):
    folder = write("zlab", make_bundle(replace(SHAPE, hidden_size=16, mask_token_id=0)))
    edit_config(folder, vocab_size=70)
    with pytest.raises(ValueError, match=r"against target tiny-.*: 5 things are wrong") as caught:
        find_source(folder).load(loaded)
    assert [line.partition(":")[0].strip(" *") for line in str(caught.value).splitlines()[1:]] == [
        *("hidden_size", "vocab_size", "num_target_layers", "taps [4]", "mask token 0")
    ]


@pytest.mark.parametrize(
    ("sizes", "ids", "words"),
    [
        ({"num_layers": 5}, {}, ["num_target_layers: the draft was made for 6, the target has 5", "taps [4]: the target's last layer that can be tapped is 3"]),  # noqa: E501
        ({"vocab_size": 61}, {}, ["vocab_size: the draft was made for 64, the target has 61", "mask token 61: the target's vocabulary ends at 60"]),  # noqa: E501
        ({}, {"stop_token_ids": (3, 61)}, ["mask token 61: is a stop token of the target"]),
        ({}, {"mask_token_id": 60}, ["mask token: the draft was trained with 61, the target is set to 60"]),
        ({}, {"mask_token_id": 61, "stop_token_ids": (60,)}, []),
    ],
)  # fmt: skip
def test_differences_in_words(sizes, ids, words):
    assert target_findings(SHAPE, vocab_size=64, sizes=SimpleNamespace(**vars(SIZES) | sizes), **ids) == words


def test_copies_of_another_targets_matrices_are_refused(loaded, tmp_path):
    bundle = bundle_of(loaded, tiny_draft(loaded.target))
    other = bundle.shared | {HEAD: bundle.shared[HEAD] + 1}
    write_folder(tmp_path / "folder", format_named("speculators"), replace(bundle, shared=other), card="")
    with pytest.raises(ValueError, match=r"tensor lm_head.weight: is not the target's"):
        find_source(tmp_path / "folder").load(loaded)


@pytest.fixture
def settings(tmp_path):
    """Overrides of evaluate.py -> its checked plain settings; a target's config.json lies in ``target``, no weights."""
    (tmp_path / "prompts.jsonl").write_text("{}\n")
    config = gpt_oss_config(vocab_size=64, num_layers=6, hidden_size=32, eos_token_id=3, pad_token_id=4)
    config.save_pretrained(tmp_path / "target")
    register()

    def run(folder: Path, *overrides: str) -> dict:
        every = [f"checkpoint={folder}", f"prompts.path={tmp_path / 'prompts.jsonl'}", *overrides]
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            return check(hydra.compose("evaluate", overrides=every), config_name="evaluate", overrides=every)

    return run


def test_a_missing_target_is_one_sentence(settings, write):
    with pytest.raises(ValueError, match=r"(?s)One thing is wrong.*: a draft folder names no target; say which, as in"):
        settings(write("zlab"))


def test_the_folder_tells_the_target_its_mask_token(settings, write, tmp_path):
    target = ["target=local", f"target.path={tmp_path / 'target'}"]
    assert settings(write("zlab"), *target)["target"]["mask_token_id"] == 61
    with pytest.raises(ValueError, match=r"One thing is wrong(?s:.*)trained with 61, the target is set to 5$"):
        settings(tmp_path / "zlab", *target, "target.mask_token_id=5")


def test_differences_are_told_before_any_weight_is_loaded(settings, write, tmp_path):
    """The target has no weights here, so nothing but its config.json can have been read."""
    folder = write("zlab", make_bundle(replace(SHAPE, hidden_size=16, mask_token_id=3)))
    with pytest.raises(ValueError, match="2 things are wrong") as caught:
        settings(folder, "target=local", f"target.path={tmp_path / 'target'}")
    assert "hidden_size: the draft was made for 16, the target has 32" in str(caught.value)
    assert "mask token 3: is a stop token" in str(caught.value)
    edit_config(folder, unheard_of=1, drop=("head_dim",))
    with pytest.raises(ValueError, match=r"(?s)2 things are wrong.*head_dim is missing.*unheard_of is not a key"):
        settings(folder, "target=local", f"target.path={tmp_path / 'target'}")
