"""train.py's work: data, module, callbacks and trainer from settings; fit; measure; report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from dflash.assemble.data import DataRecipe
from dflash.assemble.features import prepare_features
from dflash.assemble.measuring import describe_draft, describe_target, measure_all, new_draft
from dflash.assemble.parts import build_parts, members, members_of, reading_of, ready_device
from dflash.assemble.plan import plan_run
from dflash.assemble.run import Phases, bar, origin, point_latest
from dflash.assemble.stopping import stops_are_told
from dflash.assemble.used import announce_used
from dflash.compose import Run, resolve_checkpoint, write_config
from dflash.data.modules import DistillationDataModule
from dflash.data.prompts import Prompt
from dflash.decode.proposer import Proposer
from dflash.draft.adopt import adopt
from dflash.evaluation.report import write_report
from dflash.evaluation.tables import console_report
from dflash.hub.source import find_source
from dflash.objective.objective import Objective
from dflash.target.load import LoadedTarget
from dflash.target.target import Target
from dflash.training.callbacks import AcceptanceEval
from dflash.training.checkpoint import check_checkpoint, find_checkpoint, load_draft, make_contract
from dflash.training.fitting import Callback, begin, fit, make_trainer, open_loggers, resume_from
from dflash.training.module import DistillationModule

TRAINED, UNTRAINED = "trained draft", "untrained draft"


def distil(settings: dict, run: Run) -> float | None:
    """Train a draft and measure it; the mean acceptance length (None on ranks above 0)."""
    parts = train_parts(settings)
    if settings["plan"]:
        return plan_run(settings, run, parts_of=train_parts, module_of=untied_module)
    ready_device(settings["device"])
    outputs = settings["paths"]["outputs"]
    resume = resume_from(settings["resume"], outputs=outputs, name=settings["name"])
    write_config(settings, run.folder / "config.yaml")
    console, phases = Console(), Phases()
    begin(settings["seed"])
    parts["data"].peek()
    with phases("load target"):
        reading = reading_of(settings["target"], parts["target"])  # what is wrong with prompts needs no weights
        prompts, validation = (parts[name](tokenizer=reading.tokenizer) for name in ("prompts", "validation"))
        loaded: LoadedTarget = parts["target"]()
    module = make_module(settings, parts, loaded)
    if resume is not None:
        check_checkpoint(resume, module.contract)
    loggers = open_loggers(loggers_of(parts), config=settings, folder=run.folder)
    with phases("prepare data"):
        data = make_data(settings, parts["data"], loaded, console)
        prepare_features(module, data, console)
    callbacks = make_callbacks(parts, loaded, validation, run.folder)
    trainer = make_trainer(
        parts["trainer"], steps=settings["steps"], callbacks=callbacks, loggers=loggers, folder=run.folder
    )
    used = announce_used(settings, loaded, module, trainer, console)
    with phases("train"):
        _fit(trainer, module, data, resume=resume, outputs=outputs, folder=run.folder)
    if not trainer.is_global_zero:
        return None
    with phases("measure"):
        drafts, checkpoint = _drafts(settings, module, loaded, run.folder)
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
    acceptance = next((c for c in callbacks if isinstance(c, AcceptanceEval)), None)
    if acceptance is not None:
        phases.seconds["of training: acceptance evaluation"] = acceptance.seconds
    report = {
        "title": f"Distillation run {settings['name']}",
        "kind": "train",
        "provenance": origin(run.command, seed=settings["seed"], phases=phases),
        "used": used,
        "target": describe_target(loaded),
        "draft": describe_draft(drafts[TRAINED]),
        "data": _describe_data(parts["data"], data),
        "settings": plain_settings(settings) | {"measured_checkpoint": checkpoint} | run.overrides,
        "measurements": measurements,
        "curve": acceptance.curve if acceptance is not None else [],
    }
    return publish(report, run.folder, console)


def _fit(trainer, module, data, *, resume: Path | None, outputs: str, folder: Path) -> None:
    """Train; whatever happens, the checkpoints written so far are those of the newest run."""
    try:
        with stops_are_told(folder / "checkpoints"):
            fit(trainer, module, data, resume=resume)
    finally:
        if trainer.is_global_zero and any((folder / "checkpoints").glob("*.ckpt")):
            point_latest(outputs, folder)


def publish(report: dict, folder: Path, console: Console) -> float:
    """Write the report, show its table, and give the first measurement's mean acceptance length."""
    paths = write_report(report, folder)
    console.print(console_report(report))
    console.print(f"report: {paths['markdown']}", soft_wrap=True)
    best = next(m for m in report["measurements"] if m["label"] == TRAINED)
    return float(best["acceptance"]["mean"])


def plain_settings(settings: dict) -> dict[str, Any]:
    """The top-level values: what sweeps vary besides whole groups."""
    return {key: value for key, value in settings.items() if not isinstance(value, dict)}


def train_parts(settings: dict) -> dict[str, Any]:
    callbacks = {f"callbacks.{name}": None for name in ("acceptance", "checkpoints")}
    others = members(settings, "callbacks", Callback).items() - {(key, Callback) for key in callbacks}
    kinds = dict.fromkeys(("target", "draft", "anchors", "optimizer", "schedule", "trainer", "prompts", "validation"))
    kinds |= {
        "objective": Objective,
        "data": DataRecipe,
        "decoding.verifier": object,
        "attention": object,
        "features": object,
    }
    several = members(settings, "logger") | members(settings, "baselines", Proposer)
    return build_parts(settings, kinds | callbacks | dict(sorted(others)) | several)


def make_module(settings: dict, parts: dict, loaded: LoadedTarget) -> DistillationModule:
    module = untied_module(settings, parts, loaded.target, mask_token_id=loaded.mask_token_id)
    module.contract = make_contract(loaded, module.draft.shape)
    if settings["init_from"] is not None:
        start = resolve_checkpoint(settings["init_from"], settings["paths"]["outputs"])
        adopt(module.draft, find_source(start).load(loaded)[0])
    if settings["compile"] is not None:
        module.draft.compile(backend=settings["compile"])  # in place: no weight changes its name
    return module


def untied_module(settings: dict, parts: dict, target: Target, *, mask_token_id: int) -> DistillationModule:
    """The module with an empty contract: enough for a plan, whose target has no weights to make a contract with."""
    shape = parts["draft"](target.dims, block_size=settings["block_size"], mask_token_id=mask_token_id)
    names = ("steps", "num_anchors", "seed", "accumulate", "clip", "matmul")
    draft = new_draft(shape, seed=settings["seed"])
    draft.attention = parts["attention"]
    draft.checkpoint_layers = settings["activation_checkpointing"]
    return DistillationModule(
        target,
        draft,
        parts["objective"],
        optimizer=parts["optimizer"],
        schedule=parts["schedule"],
        contract={},
        features=parts["features"],
        anchors=parts["anchors"],
        **{name: settings[name] for name in names},
    )


def make_data(settings: dict, recipe: DataRecipe, loaded: LoadedTarget, console: Console) -> DistillationDataModule:
    with bar(console, "responses of the target", unit="prompts") as advance:
        documents = recipe.open(loaded, advance)
    pad = loaded.tokenizer.pad_token_id
    return recipe.module(
        documents,
        pad_id=loaded.stop_token_ids[0] if pad is None else pad,
        seed=settings["seed"],
        accumulate=settings["accumulate"],
    )


def make_callbacks(parts: dict, loaded: LoadedTarget, validation: list[Prompt], folder: Path) -> list[Callback]:
    """Acceptance first: the best checkpoint is chosen by what it has just measured."""
    callbacks: list[Callback] = []
    if parts["callbacks.acceptance"] is not None:
        callbacks.append(parts["callbacks.acceptance"](loaded, [list(prompt.ids) for prompt in validation]))
    if parts["callbacks.checkpoints"] is not None:
        callbacks.append(parts["callbacks.checkpoints"](folder=folder / "checkpoints"))
    return callbacks + [part for part in parts.values() if isinstance(part, Callback)]


def loggers_of(parts: dict) -> list:
    """The logger factories among the parts."""
    return members_of(parts, "logger")


def _drafts(settings: dict, module: DistillationModule, loaded: LoadedTarget, folder: Path):
    """({label: draft}, the name of the checkpoint measured): the best by acceptance, as evaluate.py takes it."""
    checkpoint = find_checkpoint(folder)
    drafts = {TRAINED: load_draft(checkpoint, loaded)}
    if settings["measure_untrained"]:
        fresh = new_draft(module.draft.shape, seed=settings["seed"])
        drafts = {UNTRAINED: fresh.to(loaded.target.device).eval(), **drafts}
    return drafts, checkpoint.name


def _describe_data(recipe: DataRecipe, module) -> dict[str, Any]:
    summary, bad = module.summary, recipe.bad_lines
    return {
        "recipe": type(recipe).__name__,
        "num_documents": summary.num_documents,
        "num_tokens": summary.num_tokens,
        "num_supervised_tokens": summary.num_supervised,
        "num_cut": summary.num_cut,
        "num_rows": summary.num_rows,
        "bad_lines": {**bad.counts, "examples": bad.examples} if bad.total else None,
    }
