"""The command line: a trained run out to every format and back, the card, and mistakes in one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from spoil import SHAPE, edit_config, edit_tensors, make_bundle

from dflash.compose.keys import CONF
from dflash.draft.draft import Draft
from dflash.draft.layout import alternating_layout, full_layout
from dflash.draft.shape import shape_draft
from dflash.draft.taps import explicit_taps
from dflash.hub.__main__ import main
from dflash.hub.bundle import EMBEDDING, HEAD, Bundle, TargetFacts
from dflash.hub.card import find_report, model_card
from dflash.hub.folder import format_named
from dflash.target.load import local_target, random_target
from dflash.training.checkpoint import load_draft, make_contract, read_checkpoint

REPORT = {
    "provenance": {"machine": "a machine", "command": "python train.py steps=9", "git_commit": "abc1234"},
    "settings": {"measured_checkpoint": "best.ckpt"},
    "measurements": [
        {"label": "untrained draft", "batch_size": 1, "acceptance": {"mean": 1.01}},
        {
            "label": "trained draft",
            "batch_size": 1,
            "temperature": 0.0,
            "block_size": 4,
            "num_prompts": 5,
            "max_new_tokens": 17,
            "acceptance": {"mean": 2.75, "mean_interval": [2.5, 3.0], "median": 2, "p90": 4},
            "speed": {"total_speedup": 1.37},
            "repeated_4gram_share": 0.125,
        },
    ],
}


@pytest.fixture(scope="module")
def target_folder(tmp_path_factory) -> Path:
    """A random gpt-oss on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "target"
    loaded = random_target(family="gpt_oss", vocab_size=400)()
    loaded.target.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(target_folder, tmp_path_factory):
    """(layout name -> run folder with best.ckpt and last.ckpt, the draft's weights)."""
    loaded = local_target(path=str(target_folder))()
    base, made = tmp_path_factory.mktemp("runs"), {}
    for name, layout in {"full": full_layout(), "alternating": alternating_layout(window=9)}.items():
        taps = explicit_taps(layers=[0, 2])
        mask = loaded.mask_token_id
        shape = shape_draft(loaded.target.dims, depth=2, block_size=4, taps=taps, layout=layout, mask_token_id=mask)
        torch.manual_seed(3)
        weights = {f"draft.{key}": value for key, value in Draft(shape).state_dict().items()}
        state = {"contract": make_contract(loaded, shape), "state_dict": weights, "global_step": 7}
        (base / name / "checkpoints").mkdir(parents=True)
        for file in ("best.ckpt", "last.ckpt"):
            torch.save(state, base / name / "checkpoints" / file)
        (base / name / "report.json").write_text(json.dumps(REPORT))
        made[name] = base / name, weights
    return made


def test_out_to_every_format_and_back_as_a_run(runs, form, target_folder, tmp_path, capsys):
    run, weights = runs["full"]
    folder, again = tmp_path / "folder", tmp_path / "again"
    assert main(["export", str(run), "--format", form.name, str(folder)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert main(["inspect", str(folder), "--target", str(target_folder)]) == 0
    out, err = capsys.readouterr()
    assert f"format                   {form.name}\n" in out and "taps                     [0, 2]\n" in out
    assert "warning" not in err
    assert main(["import", str(folder), str(again), "--target", str(target_folder)]) == 0
    first, second = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (run, again))
    assert first["contract"] == second["contract"]
    assert second["state_dict"].keys() == weights.keys()
    assert all(torch.equal(second["state_dict"][name], value) for name, value in weights.items())
    loaded = local_target(path=str(target_folder))()
    assert load_draft(again / "checkpoints" / "last.ckpt", loaded).shape.block_size == 4
    config = json.loads((again / "config.yaml").read_text())
    assert config["target"]["mask_token_id"] == loaded.mask_token_id and config["target"]["path"] == str(target_folder)


def test_the_targets_matrices_come_from_its_folder(runs, target_folder, tmp_path):
    assert main(["export", str(runs["full"][0]), "--format", "speculators", str(tmp_path / "folder")]) == 0
    tensors, own = load_file(tmp_path / "folder" / "model.safetensors"), load_file(target_folder / "model.safetensors")
    assert torch.equal(tensors[EMBEDDING], own["model.embed_tokens.weight"])
    assert torch.equal(tensors[HEAD], own["lm_head.weight"]) and not torch.equal(tensors[HEAD], tensors[EMBEDDING])
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": str(target_folder),
        "architectures": ["GptOssForCausalLM"],
    }


def test_one_format_to_another_and_another_type(write, target_folder, runs, tmp_path):
    zlab, half = tmp_path / "zlab", tmp_path / "half"
    assert main(["export", str(runs["full"][0] / "checkpoints" / "last.ckpt"), "--format", "zlab", str(zlab)]) == 0
    assert main(["export", str(zlab), "--format", "transformers", "--dtype", "bfloat16", str(half)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (zlab, half))
    assert all(torch.equal(after[name], value.bfloat16()) for name, value in before.items())
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_card_has_the_measured_figures_and_the_commands(runs, target_folder, tmp_path):
    folder = tmp_path / "a draft"
    assert main(["export", str(runs["full"][0]), "--format", "zlab", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    assert "2.75 (2.50" in card and "1.37x" in card and "untrained" not in card
    assert "5 prompts of at most 17 new tokens on a machine; 12.5 % of the target's 4-grams" in card
    assert "`python train.py steps=9`, commit abc1234" in card
    speculation = {"method": "dflash", "model": str(folder), "num_speculative_tokens": 3}
    assert f"vllm serve {target_folder} --speculative-config '{json.dumps(speculation)}'" in card
    sglang = (
        f"--speculative-algorithm DFLASH --speculative-draft-model-path '{folder}' --speculative-num-draft-tokens 4"
    )
    assert f"python -m sglang.launch_server --model-path {target_folder} {sglang}" in card
    assert f"python evaluate.py checkpoint='{folder}' target=local target.path={target_folder}" in card


def test_the_cards_snippet_for_transformers_runs(runs, tmp_path):
    assert main(["export", str(runs["alternating"][0]), "--format", "transformers", str(tmp_path / "folder")]) == 0
    code = (tmp_path / "folder" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert 'speculation_type="dflash"' in code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONF.parent, check=False)
    assert done.returncode == 0 and done.stdout.startswith("def fibonacci(n):"), done.stderr


def test_figures_of_another_checkpoint_are_not_claimed(runs, tmp_path):
    checkpoints = runs["full"][0] / "checkpoints"
    assert find_report(checkpoints / "best.ckpt") == REPORT and find_report(checkpoints / "last.ckpt") is None
    assert main(["export", str(checkpoints / "last.ckpt"), "--format", "zlab", str(tmp_path / "folder")]) == 0
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "2.75" not in card and "No measurements" in card


def test_sliding_layers_are_warned_about_where_a_server_runs_them_otherwise(runs, tmp_path, capsys):
    assert main(["export", str(runs["alternating"][0]), "--format", "zlab", str(tmp_path / "folder")]) == 0
    assert capsys.readouterr().err.startswith("warning: SGLang (0.5.23) runs sliding-window draft layers causally")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "sglang.launch_server" not in card and "SGLang: not for this draft" in card
    assert "VLLM_USE_V2_MODEL_RUNNER=1 vllm serve" in card  # sliding and full layers mixed


def test_a_hub_id_stands_in_the_card_as_the_base_model():
    bundle = make_bundle()
    card = model_card(format_named("zlab"), bundle, folder="out", origin="run", report=None)
    assert card.startswith('---\ntags:\n- dflash\n- speculative-decoding\nbase_model:\n- "somebody/target"\n---\n')
    assert "target.path=FOLDER_OF_THE_TARGET" in card
    nobody = Bundle(SHAPE, TargetFacts(64), bundle.weights)
    assert "base_model" not in model_card(format_named("zlab"), nobody, folder="out", origin="run", report=None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "{tmp}/nowhere", "--format", "zlab", "{tmp}/out"], "is neither a checkpoint file nor a run folder"),
        (["export", "{run}", "--format", "zlab", "{run}"], "is there and not an empty folder"),
        (["export", "{run}", "--format", "zlab", "{tmp}/out", "--target", "{tmp}/nowhere"], "no model folder and not"),
        (["export", "{draft}", "--format", "speculators", "{tmp}/out"], "give --target FOLDER"),
        (["inspect", "{tmp}/nowhere"], "cannot be read"),
        (["inspect", "{target}"], "is of no draft format known here"),
        (["inspect", "{draft}", "--target", "{target}"], "vocab_size: the draft was made for 64, the target has 400"),
        (["import", "{draft}", "{tmp}/out", "--target", "{target}"], "3 things are wrong:\n  * vocab_size: the draft"),
        (["import", "{draft}", "{run}", "--target", "{target}"], "is there already"),
    ],
)
def test_mistakes_end_in_one_message(arguments, words, runs, write, target_folder, tmp_path, capsys):
    places = {"tmp": tmp_path, "run": runs["full"][0], "draft": write("zlab"), "target": target_folder}
    capsys.readouterr()
    assert main([argument.format(**places) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and "Traceback" not in err and "warning" not in err
    assert out.startswith("format") == (arguments[0] == "inspect" and "--target" in arguments)  # read, but not fitting
    assert not (tmp_path / "out").exists()


def test_inspecting_a_wrong_folder_lists_all(write, capsys):
    folder = write("zlab")
    edit_config(folder, unheard_of=1)
    edit_tensors(folder, lambda tensors: tensors.pop("norm.weight"))
    assert main(["inspect", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "unheard_of is not a key" in err and "tensor norm.weight is missing" in err


def test_a_wrong_command_line_is_one_sentence_and_costs_no_heavy_import(tmp_path):
    call = [sys.executable, "-X", "importtime", "-m", "dflash.hub", "export", "x", "--format", "gguf", "y"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=CONF.parent, check=False)
    told = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2 and len(told) == 1 and "choose from" in told[0] and done.stdout == ""
    assert "| torch\n" not in done.stderr and "transformers.utils" not in done.stderr
