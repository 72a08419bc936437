"""The probe: it passes what can be decoded and names what is wrong with the rest."""

from __future__ import annotations

import pytest
import torch
from toys import TARGET_FAMILIES, tiny_target

from dflash.target.__main__ import main
from dflash.target.families import FAMILIES, build_model
from dflash.target.probe import CHECKS
from dflash.target.recurrent import Recurrence


def failed(target) -> list[str]:
    return [check.name for check in target.probe(length=30) if not check.passed]


@pytest.mark.parametrize("family", TARGET_FAMILIES)
def test_every_family_passes(family):
    checks = tiny_target(family).probe(length=30)
    assert [check.name for check in checks] == list(CHECKS)
    assert all(check.passed for check in checks), checks
    assert all(check.scale > 0.3 for check in checks)  # something was compared


def test_a_cap_left_out_shows_in_logits_only():
    target = tiny_target("gemma2")
    target.softcap = None
    assert "logits" in failed(target)
    assert not {"embeddings", "features"} & set(failed(target))


def test_a_window_ignored_shows_wherever_masks_are_ours():
    target = tiny_target("gpt_oss")
    target._named = lambda masks: {"full_attention": masks[None], "sliding_attention": masks[None]}
    assert target.plan.window == 16
    assert {"features", "logits", "packed documents", "sessions, partial keeps"} <= set(failed(target))


def test_states_not_restored_show_in_sessions(monkeypatch):
    target = tiny_target("qwen3_next")

    def forget(self: Recurrence) -> None:
        self.last = None

    monkeypatch.setattr(Recurrence, "_settle", forget)
    assert set(failed(target)) >= {"sessions, partial keeps", "sessions, leaving rows"}
    assert not {"embeddings", "features", "logits", "packed documents"} & set(failed(target))


def test_documents_that_leak_show(monkeypatch):
    target = tiny_target("lfm2")
    monkeypatch.setattr("dflash.target.target.by_document", lambda run, batch: run(batch))
    assert failed(target) == ["packed documents"]


def test_what_raises_has_failed_and_says_why():
    target = tiny_target("llama")
    target.embed = lambda ids: torch.zeros(1, 2)[:, ids]
    check = target.probe(length=30)[0]
    assert (check.name, check.passed) == ("embeddings", False)
    assert check.note.startswith("IndexError: ")


def test_half_precision_is_told_from_junk():
    target = tiny_target("qwen3_5")
    target.model.to(torch.bfloat16)
    assert failed(target) == []


def test_command_says_passed_and_failed(capsys, monkeypatch, tmp_path):
    build_model(FAMILIES["gemma3"](64)).save_pretrained(tmp_path)
    assert main(["probe", str(tmp_path), "--length", "24"]) == 0
    assert capsys.readouterr().out.count("│ passed") == len(CHECKS)
    monkeypatch.setitem(CHECKS, "logits", lambda case: iter([(case.own.logits + 1, case.own.logits)]))
    assert main(["probe", "llama", "--length", "24"]) == 1
    shown = capsys.readouterr().out
    assert (shown.count("│ passed"), shown.count("│ failed")) == (len(CHECKS) - 1, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no/such/folder"], "no/such/folder is no family and cannot be loaded as a model"),
        (["llama", "--length", "5"], "--length=5: must be at least 24"),
        (["gemma2", "--attention", "fused"], "target.attention=fused: it cannot cap scores at 5.0"),
    ],
)
def test_command_answers_mistakes_in_a_sentence(arguments, sentence, capsys):
    assert main(["probe", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.strip().splitlines()[-1].startswith(sentence)
    assert captured.out == ""
