"""evaluate.py's work: prompt -> decode -> acceptance statistics -> report."""

from __future__ import annotations

from rich.console import Console

from dflash.assemble.measuring import describe_draft, describe_target, measure_all, new_draft
from dflash.assemble.parts import build_parts, members, members_of, reading_of, ready_device
from dflash.assemble.run import Phases, origin
from dflash.assemble.train import TRAINED, UNTRAINED, plain_settings, publish
from dflash.compose import Run, resolve_checkpoint, write_config
from dflash.decode.proposer import Proposer
from dflash.hub.source import find_source


def evaluate(settings: dict, run: Run) -> float:
    """Decode the prompts with and without the checkpoint's draft; the mean acceptance length."""
    kinds = {"target": None, "prompts": None, "decoding.verifier": object}
    parts = build_parts(settings, kinds | members(settings, "baselines", Proposer))
    ready_device(settings["device"])
    source = find_source(resolve_checkpoint(settings["checkpoint"], settings["paths"]["outputs"]))
    write_config(settings, run.folder / "config.yaml")
    console, phases = Console(), Phases()
    with phases("load"):
        reading = reading_of(settings["target"], parts["target"])  # what is wrong with prompts needs no weights
        prompts = parts["prompts"](tokenizer=reading.tokenizer)
        loaded = parts["target"]()
        draft, notes = source.load(loaded)
        drafts = {TRAINED: draft}
        if settings["measure_untrained"]:
            fresh = new_draft(draft.shape, seed=settings["seed"])
            drafts = {UNTRAINED: fresh.to(loaded.target.device).eval(), **drafts}
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    with phases("measure"):
        measurements = measure_all(
            loaded,
            drafts,
            prompts,
            decoding=settings["decoding"],
            baselines=members_of(parts, "baselines"),
            verifier=parts["decoding.verifier"],
            block_size=settings["block_size"],
            console=console,
        )
    report = {
        "title": f"Evaluation of {source.path.resolve()}",
        "kind": "evaluate",
        "provenance": origin(run.command, seed=settings["seed"], phases=phases),
        "target": describe_target(loaded),
        "draft": describe_draft(draft) | source.describe(),
        "settings": plain_settings(settings) | run.overrides,
        "measurements": measurements,
    }
    return publish(report, run.folder, console)
