"""Answers are generated in the order of the prompts' lengths and used in the prompts' own."""

from __future__ import annotations

from types import SimpleNamespace

from dflash.assemble import data
from dflash.data.prompts import Prompt

LENGTHS = (9, 3, 7, 3, 12)


def test_documents_keep_the_prompts_order(monkeypatch):
    seen = []

    def echo(prompts, **options):
        seen.extend(len(prompt.ids) for prompt in prompts)
        return [prompt.name for prompt in prompts]

    monkeypatch.setattr(data, "regenerate", echo)
    monkeypatch.setattr(data.RegeneratedData, "fingerprint", lambda self, loaded: {})
    monkeypatch.setattr(data.RegeneratedData, "_generate", lambda self, loaded: None)
    prompts = [Prompt(tuple(range(1, 1 + length)), f"p{i}", "completion", "") for i, length in enumerate(LENGTHS)]

    def fixed(*, tokenizer):
        return prompts

    fixed.keywords = {}  # as a partial has them
    recipe = data.RegeneratedData(prompts=fixed, max_new_tokens=4, cache="", seed=0, length=16, batch_size=1)
    documents = recipe.open(SimpleNamespace(tokenizer=None), lambda done, total: None)()
    assert seen == sorted(LENGTHS)
    assert documents == [f"p{i}" for i in range(len(LENGTHS))]
