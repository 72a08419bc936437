"""Loading targets: a folder gives back what was saved; what cannot serve is refused with one sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dflash.target.flex import attention_on
from dflash.target.load import local_target, random_target, read_dims
from dflash.target.used import implementations


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random gpt-oss with its tokenizer, as a model folder in bf16."""
    path = tmp_path_factory.mktemp("target")
    loaded = random_target(family="gpt_oss", vocab_size=300)()
    loaded.target.model.to(torch.bfloat16).save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return path


def known_id(folder, token: str) -> int:
    return local_target(path=str(folder))().tokenizer.convert_tokens_to_ids(token)


def test_a_folder_gives_back_what_was_saved(folder):
    saved = random_target(family="gpt_oss", vocab_size=300)()
    loaded = local_target(path=str(folder))()
    assert loaded.target.dtype == torch.float32  # asked for, whatever the folder holds
    assert loaded.target.dims == saved.target.dims == read_dims(folder)
    assert loaded.tokenizer_fingerprint() == saved.tokenizer_fingerprint()
    assert (loaded.mask_token_id, loaded.stop_token_ids) == (saved.mask_token_id, saved.stop_token_ids)
    for name, weight in saved.target.model.state_dict().items():
        torch.testing.assert_close(loaded.target.model.state_dict()[name], weight.to(torch.bfloat16).float())
    assert not loaded.target.model.training
    assert not any(p.requires_grad for p in loaded.target.model.parameters())


def test_stop_tokens_are_those_of_generation_and_of_harmony(folder):
    loaded = local_target(path=str(folder))()
    names = set(loaded.tokenizer.convert_ids_to_tokens(list(loaded.stop_token_ids)))
    assert names == {"<|return|>", "<|call|>", "<|endoftext|>"}


def test_attention_and_experts_are_options_that_change_nothing(folder):
    ids = torch.arange(12)[None]
    own, ours = (
        local_target(path=str(folder), **options)().target
        for options in ({"attention": "eager"}, {"attention": "fused", "experts": "grouped_mm"})
    )
    torch.testing.assert_close(ours.model(ids).logits, own.model(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (300, "must be below the vocabulary of 300"),
        (-1, "must be below the vocabulary of 300"),
        ("<|return|>", "is a stop or padding token; choose a reserved id"),
        ("<|pad|>", "is a stop or padding token; choose a reserved id"),
    ],
)
def test_mask_tokens_that_cannot_serve(folder, token, words):
    number = known_id(folder, token) if isinstance(token, str) else token
    with pytest.raises(ValueError, match=f"^target.mask_token_id={number}.*{words}$"):
        local_target(path=str(folder), mask_token_id=number)()


def test_a_tokenizer_without_a_mask_token_needs_a_reserved_id(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "mask_token"}))
    with pytest.raises(ValueError, match=r"has no mask token; set target\.mask_token_id to a reserved id below 300$"):
        local_target(path=str(tmp_path))()
    reserved = known_id(folder, "<|constrain|>")
    assert local_target(path=str(tmp_path), mask_token_id=reserved)().mask_token_id == reserved


def test_what_is_no_model_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*\); give a model folder, or connect"):
        local_target(path=str(tmp_path))()
    with pytest.raises(ValueError, match=r"has no config\.json; give a model folder$"):
        read_dims(tmp_path)
    with pytest.raises(ValueError, match=r"^target\.family='gpt2': choose one of gpt_oss"):
        random_target(family="gpt2")


def test_a_missing_gpu_is_a_sentence(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"no CUDA GPU is visible here; use a GPU machine or target\.device=cpu$"):
        local_target(path=str(folder), device="cuda")()


def test_fingerprints_tell_tokenizers_apart():
    loaded = random_target(family="gpt_oss", vocab_size=300)()
    other = random_target(family="gpt_oss", vocab_size=301)()
    assert loaded.tokenizer_fingerprint() != other.tokenizer_fingerprint()
    before = loaded.tokenizer_fingerprint()
    loaded.tokenizer.chat_template += " "
    assert replace(loaded).tokenizer_fingerprint() != before


def test_flex_attention_on_a_processor_is_the_fused_one_and_says_so(folder):
    loaded = local_target(path=str(folder), attention="flex")()
    assert implementations(loaded.target)["attention"] == "fused"
    assert attention_on("cuda:1", "flex") == "flex" and attention_on("cpu", "eager") == "eager"
