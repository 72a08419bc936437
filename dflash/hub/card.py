"""The model card of an exported draft: what it is, what it measured, and how to serve it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dflash.evaluation.fields import lookup, measurements_of
from dflash.evaluation.tables import markdown_rows, markdown_table
from dflash.hub.bundle import Bundle
from dflash.hub.format import Format

UNMEASURED = "No measurements lay beside the checkpoint when it was exported."


def model_card(form: Format, bundle: Bundle, *, folder: str, origin: str, report: Mapping[str, Any] | None) -> str:
    """README.md of the folder. ``origin``: what was exported; ``report``: measurements of exactly that, if any."""
    target = bundle.facts.name or "TARGET"
    parts = [
        _front_matter(bundle),
        f"# DFlash draft for {target}",
        f"A block-diffusion draft for speculative decoding ([arXiv 2602.06036](https://arxiv.org/abs/2602.06036)), "
        f"exported from `{origin}` in the {form.name} format. It proposes {bundle.shape.block_size - 1} tokens a "
        "round, which the target verifies: the output is the target's own. It shares the target's embedding and head.",
        _shape_table(bundle),
        "## Measured",
        *(_measured(report) if report else [UNMEASURED]),
        "## Serve it",
        *_serving(form, bundle, folder=folder, target=target),
    ]
    return "\n\n".join(parts) + "\n"


def find_report(checkpoint: Path) -> dict[str, Any] | None:
    """The report.json of the run a checkpoint lies in, if its figures are this very checkpoint's.

    A run measures one of its checkpoints and names it; another one's figures would be a false claim.
    """
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / "report.json").is_file():
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            measured = lookup(report, "settings", "measured_checkpoint")
            return report if measured == checkpoint.name and measurements_of(report) else None
    return None


def _front_matter(bundle: Bundle) -> str:
    lines = ["tags:", "- dflash", "- speculative-decoding"]
    if bundle.facts.name and not Path(bundle.facts.name).exists():  # a hub id, not a folder of this machine
        lines += ["base_model:", f"- {json.dumps(bundle.facts.name)}"]
    return "\n".join(["---", *lines, "---"])


def _shape_table(bundle: Bundle) -> str:
    shape = bundle.shape
    layers = ", ".join("full" if window is None else f"sliding {window}" for window in shape.layout)
    rows = {
        "parameters": f"{sum(tensor.numel() for tensor in bundle.weights.values()):,}",
        "layers": f"{shape.depth} ({layers}); blocks bidirectional in all of them",
        "block size": f"{shape.block_size}, anchor included",
        "taps": f"outputs of target layers {', '.join(map(str, shape.taps))} of {shape.num_target_layers}, from 0",
        "mask token": str(shape.mask_token_id),
        "type": str(bundle.weights["fc.weight"].dtype).removeprefix("torch."),
    }
    if any(shape.layout):
        rows["sliding window"] = "a slot at position p sees context from p - (window - 1) on, and its block whole"
    return markdown_rows(["draft", ""], [list(row) for row in rows.items()], left=2)


def _measured(report: Mapping[str, Any]) -> Iterator[str]:
    trained = [m for m in measurements_of(report) if not str(m.get("label")).startswith("untrained")]
    yield markdown_table({"measurements": trained})
    first, machine = trained[0] if trained else {}, lookup(report, "provenance", "machine")
    share = first.get("repeated_4gram_share")
    repeats = "" if share is None else f"; {100 * share:.1f} % of the target's 4-grams repeat earlier ones"
    yield (
        f"Acceptance length counts the bonus token. {first.get('num_prompts')} prompts of at most "
        f"{first.get('max_new_tokens')} new tokens on {machine}{repeats}. AR: the target alone over the same cache. "
        f"Command: `{lookup(report, 'provenance', 'command')}`, commit {lookup(report, 'provenance', 'git_commit')}."
    )


def _serving(form: Format, bundle: Bundle, *, folder: str, target: str) -> Iterator[str]:
    """The commands of every server; for those of another format, how to get that one."""
    here, model, block = shlex.quote(folder), shlex.quote(target), bundle.shape.block_size
    kinds = {window is None for window in bundle.shape.layout}
    speculation = json.dumps({"method": "dflash", "model": folder, "num_speculative_tokens": block - 1})
    runner = "VLLM_USE_V2_MODEL_RUNNER=1 " if len(kinds) > 1 else ""  # sliding and full layers mixed
    vllm = f"{runner}vllm serve {model} --speculative-config {shlex.quote(speculation)}"
    sglang = (
        f"python -m sglang.launch_server --model-path {model} --speculative-algorithm DFLASH "
        f"--speculative-draft-model-path {here} --speculative-num-draft-tokens {block}"
    )
    yield _server("vLLM", vllm, form, ("zlab", "speculators"))
    if any(bundle.shape.layout):
        yield "SGLang: not for this draft, whose sliding-window layers it would run causally inside the block."
    else:
        yield _server("SGLang", sglang, form, ("zlab",))
    yield "transformers, with the library that trained this draft installed:"
    yield f"```python\n{_TRANSFORMERS.format(target=target, folder=folder)}```"
    yield "The library's own decoder and measurements:"
    place = model if Path(target).exists() else "FOLDER_OF_THE_TARGET"
    yield f"```bash\npython evaluate.py checkpoint={here} target=local target.path={place}\n```"
    for warning in form.warnings(bundle.shape):
        yield f"**Note:** {warning}."


def _server(name: str, command: str, form: Format, takes: tuple[str, ...]) -> str:
    if form.name not in takes:
        return f"{name} takes another format: export it again with `--format {takes[0]}`."
    return f"{name}:\n\n```bash\n{command}\n```"


_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
from dflash.hub.assistant import load_assistant

tokenizer = AutoTokenizer.from_pretrained({target!r})
target = AutoModelForCausalLM.from_pretrained({target!r})
assistant = load_assistant({folder!r})
inputs = tokenizer("def fibonacci(n):", return_tensors="pt")
output = target.generate(**inputs, assistant_model=assistant, speculation_type="dflash", max_new_tokens=64)
print(tokenizer.decode(output[0]))
"""
