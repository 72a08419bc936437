"""The bench of a study: target, batches and features that several drafts share, and how one draft is trained on them.

Drafts are trained one after the other, each exactly as train.py would train it alone. What pairs them is that batch k,
and the anchors drawn in it, depend on the seed and k only; what saves time is that the target's features of each batch
are kept from the first draft that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dflash.assemble.measuring import conditions, sampling_of
from dflash.assemble.parts import build_parts
from dflash.assemble.train import make_callbacks, make_data, make_module, train_parts
from dflash.data.modules import DistillationDataModule
from dflash.draft.draft import Draft
from dflash.evaluation.measure import measure
from dflash.study.features import SharedFeatures, now
from dflash.study.trials import Trial
from dflash.target.load import LoadedTarget
from dflash.training.checkpoint import find_checkpoint, last_checkpoint, load_draft
from dflash.training.fitting import begin, fit, make_trainer
from dflash.training.steps import StepClock


@dataclass(frozen=True)
class Bench:
    """Target, training batches and shared features of the trials of one stream."""

    loaded: LoadedTarget
    data: DistillationDataModule
    features: SharedFeatures


def make_bench(trials: Sequence[Trial], loaded: LoadedTarget, console: Console) -> Bench:
    """What these trials, which see the same batches, share; regenerated responses that are missing are written now."""
    settings = trials[0].settings
    first = build_parts(settings, {"data": object, "features": object})
    taps: set[int] = set()
    with_last = False
    for trial in trials:
        parts = train_parts(trial.settings)
        options = {"block_size": trial.settings["block_size"], "mask_token_id": loaded.mask_token_id}
        taps |= set(parts["draft"](loaded.target.dims, **options).taps)
        with_last |= parts["objective"].needs_target
    shared = SharedFeatures(first["features"], taps, with_last=with_last)
    return Bench(loaded, make_data(settings, first["data"], loaded, console), shared)


def train_draft(trial: Trial, bench: Bench, folder: Path, on_step: Callable[[int], None]) -> tuple[Draft, dict]:
    """The trial's draft, and what its training cost; goes on from the last checkpoint in ``folder`` if there is one."""
    settings, loaded = trial.settings, bench.loaded
    parts = train_parts(settings) | {"features": bench.features}
    begin(settings["seed"])
    module = make_module(settings, parts, loaded)
    validation = [] if parts["callbacks.acceptance"] is None else parts["validation"](tokenizer=loaded.tokenizer)
    clock = StepClock(lambda: now() - bench.features.seconds, on_step)
    trainer = make_trainer(
        parts["trainer"],
        steps=settings["steps"],
        callbacks=[clock, *make_callbacks(parts, loaded, validation, folder)],
        loggers=[],
        folder=folder,
    )
    begun = (folder / "checkpoints" / "last.ckpt").is_file()
    fit(trainer, module, bench.data, resume=last_checkpoint(folder) if begun else None)
    draft = load_draft(find_checkpoint(folder), loaded)
    seconds, processor_seconds = clock.seconds.tolist()
    return draft, {
        "num_parameters": draft.num_parameters,
        "steps": settings["steps"],
        "train_tokens": clock.num_tokens,
        "train_seconds": seconds,
        "train_processor_seconds": processor_seconds,
        "features_seconds": float(bench.features.seconds[0]),
    }


def measure_trial(trial: Trial, draft: Draft, loaded: LoadedTarget, on_tokens: Callable[[int], None]) -> list[dict]:
    """One measurement per condition of the trial's conf ``decoding``, by real decoding beside the baseline."""
    parts = build_parts(trial.settings, {"prompts": None, "decoding.verifier": object})
    ids = [list(prompt.ids) for prompt in parts["prompts"](tokenizer=loaded.tokenizer)]
    decoding, block = trial.settings["decoding"], trial.arm.block_decoded
    return [
        measure(
            loaded.target,
            draft,
            ids,
            label=trial.arm.name,
            block_size=block if block is not None else trial.settings["block_size"],
            batch_size=batch_size,
            sampling=sampling_of(decoding, temperature),
            verifier=parts["decoding.verifier"],
            max_new_tokens=decoding["max_new_tokens"],
            stop_token_ids=loaded.stop_token_ids,
            on_tokens=on_tokens,
        )
        for batch_size, temperature in conditions(decoding)
    ]
