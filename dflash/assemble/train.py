"""train.py's work: data, module, callbacks and trainer from settings; fit; measure; report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console

from dflash.allocator import keep_freed_memory
from dflash.assemble.data import DataRecipe
from dflash.assemble.measuring import describe_draft, describe_target, measure_all, new_draft
from dflash.assemble.parts import build_parts, members, ready_device
from dflash.assemble.run import Phases, bar, newest_run, origin, point_latest
from dflash.compose import Run, write_config
from dflash.evaluation.report import write_report
from dflash.evaluation.tables import console_report
from dflash.objective.objective import Objective
from dflash.target.load import LoadedTarget
from dflash.training.callbacks import AcceptanceEval
from dflash.training.checkpoint import find_checkpoint, last_checkpoint, load_draft, make_contract
from dflash.training.module import DistillationModule

TRAINED, UNTRAINED = "trained draft", "untrained draft"


def distil(settings: dict, run: Run) -> float | None:
    """Train a draft and measure it; the mean acceptance length (None on ranks above 0)."""
    parts = _parts(settings)
    ready_device(settings["device"])
    resume = _resume(settings)
    if settings["device"] == "cpu":
        keep_freed_memory()
    run.folder.mkdir(parents=True, exist_ok=True)
    write_config(settings, run.folder / "config.yaml")
    console, phases = Console(), Phases()
    L.seed_everything(settings["seed"], workers=True, verbose=False)
    with phases("load target"):
        loaded: LoadedTarget = parts["target"]()
    prompts = parts["prompts"](tokenizer=loaded.tokenizer)
    module = _module(settings, parts, loaded)
    with phases("prepare data"):
        data = _data(settings, parts["data"], loaded, console)
    callbacks = _callbacks(parts, loaded, [list(prompt.ids) for prompt in prompts], run.folder)
    trainer = _trainer(settings, parts, callbacks, run.folder)
    with phases("train"):
        _fit(trainer, module, data, resume=resume, run=run, outputs=settings["paths"]["outputs"])
    if not trainer.is_global_zero:
        return None
    with phases("measure"):
        drafts, checkpoint = _drafts(settings, module, loaded, run.folder)
        measurements = measure_all(
            loaded,
            drafts,
            prompts,
            decoding=settings["decoding"],
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
        "target": describe_target(loaded),
        "draft": describe_draft(drafts[TRAINED]),
        "data": _describe_data(parts["data"], data),
        "settings": plain_settings(settings) | {"measured_checkpoint": checkpoint} | run.overrides,
        "measurements": measurements,
        "curve": acceptance.curve if acceptance is not None else [],
    }
    return publish(report, run.folder, console)


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


def _parts(settings: dict) -> dict[str, Any]:
    callbacks = {f"callbacks.{name}": None for name in ("acceptance", "checkpoints")}
    others = members(settings, "callbacks", L.Callback).items() - {(key, L.Callback) for key in callbacks}
    kinds = dict.fromkeys(("target", "draft", "optimizer", "schedule", "trainer", "prompts"))
    kinds |= {"objective": Objective, "data": DataRecipe, "decoding.verifier": object}
    return build_parts(settings, kinds | callbacks | dict(sorted(others)) | members(settings, "logger"))


def _resume(settings: dict) -> Path | None:
    if settings["resume"] is None:
        return None
    if settings["resume"] == "auto":
        return newest_run(settings["paths"]["outputs"], settings["name"])
    return last_checkpoint(settings["resume"])


def _module(settings: dict, parts: dict, loaded: LoadedTarget) -> DistillationModule:
    shape = parts["draft"](loaded.target.dims, block_size=settings["block_size"], mask_token_id=loaded.mask_token_id)
    names = ("steps", "num_anchors", "seed", "accumulate", "clip")
    return DistillationModule(
        loaded.target,
        new_draft(shape, seed=settings["seed"]),
        parts["objective"],
        optimizer=parts["optimizer"],
        schedule=partial_schedule(parts["schedule"]),
        contract=make_contract(loaded, shape),
        **{name: settings[name] for name in names},
    )


def partial_schedule(schedule):
    """The schedule as a function of the number of steps."""
    return lambda steps: schedule(steps)


def _data(settings: dict, recipe: DataRecipe, loaded: LoadedTarget, console: Console) -> L.LightningDataModule:
    with bar(console, "responses of the target", unit="prompts") as advance:
        documents = recipe.open(loaded, advance)
    pad = loaded.tokenizer.pad_token_id
    return recipe.module(
        documents,
        pad_id=loaded.stop_token_ids[0] if pad is None else pad,
        seed=settings["seed"],
        accumulate=settings["accumulate"],
    )


def _callbacks(parts: dict, loaded: LoadedTarget, prompts: list[list[int]], folder: Path) -> list[L.Callback]:
    """Acceptance first: the best checkpoint is chosen by what it has just measured."""
    callbacks: list[L.Callback] = []
    if parts["callbacks.acceptance"] is not None:
        callbacks.append(parts["callbacks.acceptance"](loaded, prompts))
    if parts["callbacks.checkpoints"] is not None:
        callbacks += parts["callbacks.checkpoints"](folder=folder / "checkpoints")
    return callbacks + [part for part in parts.values() if isinstance(part, L.Callback)]


def loggers(parts: dict, settings: dict, folder: Path) -> list:
    """The loggers, writing below ``folder``, with the whole configuration under one key."""
    made = [part(save_dir=folder) for key, part in parts.items() if key.startswith("logger.") and part is not None]
    for logger in made:
        if hasattr(logger, "watch"):  # W&B alone
            logger.experiment.config.update({"config": settings}, allow_val_change=True)
    return made


def _trainer(settings: dict, parts: dict, callbacks: list[L.Callback], folder: Path) -> L.Trainer:
    return parts["trainer"](
        max_steps=settings["steps"],
        max_epochs=-1,
        callbacks=callbacks,
        logger=loggers(parts, settings, folder),
        default_root_dir=folder,
        enable_model_summary=False,
        enable_progress_bar=any("progress" in key for key in parts if parts[key] is not None),
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )


def _fit(trainer: L.Trainer, module, data, *, resume: Path | None, run: Run, outputs: str) -> None:
    """Fit; whatever happens, checkpoints written so far become the newest run."""
    checkpoints = run.folder / "checkpoints"
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume)
        trainer.save_checkpoint(checkpoints / "last.ckpt")
    finally:
        if trainer.is_global_zero and any(checkpoints.glob("*.ckpt")):
            point_latest(outputs, run.folder)


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
