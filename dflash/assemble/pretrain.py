"""experiment=tiny_target: trains the embedded target from scratch and writes it as a model folder of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from dflash.assemble.parts import build_parts, members, ready_device
from dflash.assemble.run import Phases
from dflash.assemble.stopping import stops_are_told
from dflash.assemble.train import loggers_of
from dflash.compose import Run, write_config
from dflash.data.corpus import SourceFile, read_corpus
from dflash.data.modules import PretrainDataModule
from dflash.data.pretraining import held_out_rows, training_rows
from dflash.evaluation.report import write_whole
from dflash.target.families import build_model
from dflash.target.tokenizer import train_tokenizer
from dflash.training.fitting import Callback, begin, fit, make_trainer, open_loggers, periodic_checkpoints, resume_from
from dflash.training.pretrain import PretrainModule, average_weights, held_out_bits, read_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pretrain(
    settings: dict,
    run: Run,
    *,
    architecture,
    vocab_size: int,
    length: int,
    batch_size: int,
    corpus_root: str | None = None,
    save_to: str | None = None,
    average_with: Sequence[str] = (),
) -> float:
    """Held-out bits per byte, negated: what a sweeper maximises.

    architecture: a function of vocab_size, eos_token_id and pad_token_id. length: tokens per row. save_to: where the
    model folder goes besides the run's own ``target``. average_with: checkpoint files of other runs of this model;
    what is saved is the mean of their weights and this run's.
    """
    others = [Path(path) for path in average_with]
    for path in others:
        if not path.is_file():
            raise ValueError(f"task.average_with={str(path)!r}: no such file; name checkpoints of finished runs")
    kinds = dict.fromkeys(("optimizer", "schedule", "trainer"))
    parts = build_parts(settings, kinds | {"callbacks.progress": Callback} | members(settings, "logger"))
    ready_device(settings["device"])
    if settings["device"] == "cpu":
        torch.set_flush_denormal(True)  # averages of gradients of rare tokens fade into numbers that cost a trap each
    resume = resume_from(settings["resume"], outputs=settings["paths"]["outputs"], name=settings["name"])
    write_config(settings, run.folder / "config.yaml")
    phases = Phases()
    begin(settings["seed"])
    files = read_corpus(corpus_root)
    tokenizer = train_tokenizer((f.text for f in files if not f.held_out), vocab_size=vocab_size)
    model = build_model(
        architecture(vocab_size=vocab_size, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    )
    model.set_experts_implementation("eager")  # the fastest of transformers' for training on a CPU
    data, num_bytes = _data(settings, files, tokenizer, length=length, batch_size=batch_size)
    module = PretrainModule(
        model,
        optimizer=parts["optimizer"],
        schedule=parts["schedule"],
        steps=settings["steps"],
        held_out_bytes=num_bytes,
    )
    # What is wrong with checkpoints is told before training.
    other_weights = [read_weights(module, path, key="task.average_with") for path in others]
    if resume is not None:
        read_weights(module, resume, key="resume")
    trainer = _trainer(settings, parts, run.folder)
    with phases("train"), stops_are_told(run.folder / "checkpoints"):
        fit(trainer, module, data, resume=resume)
        trainer.save_checkpoint(run.folder / "checkpoints" / "last.ckpt")
    if other_weights:
        average_weights(module, other_weights)
    with phases("held out"):  # of what is saved: weights rounded to bf16, computed in fp32
        model.to(settings["device"], torch.bfloat16).float()  # Lightning leaves a model on the processor
        bits = held_out_bits(model, data.held_out_batches(), num_bytes=num_bytes)
    facts = {
        "corpus": f"Python standard library, {len(files)} files, {sum(f.held_out for f in files)} of them held out",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "steps": f"{settings['steps']} of {batch_size * settings['accumulate']} rows of {length} tokens",
        "weights": f"the mean of this run's and {len(others)} other's" if others else "this run's",
        "held-out bits per byte": f"{bits:.4f} over {num_bytes:,} bytes (windows of {length} tokens, half a stride)",
        "seed": settings["seed"],
        "command": run.command,
        "seconds of training": f"{phases.seconds['train']:,.0f}",
    }
    for folder in filter(None, [run.folder / "target", save_to]):
        save_target(Path(folder), model, tokenizer, facts)
    Console().print(f"{bits:.4f} held-out bits per byte; model in {save_to or run.folder / 'target'}", soft_wrap=True)
    return -bits if math.isfinite(bits) else float("-inf")


def _data(settings: dict, files: list[SourceFile], tokenizer: PreTrainedTokenizerBase, *, length: int, batch_size: int):
    """(data module, bytes of the held-out files)."""
    held_out, num_bytes = held_out_rows(files, tokenizer, length=length)
    data = PretrainDataModule(
        training_rows(files, tokenizer, length=length, seed=settings["seed"]),
        held_out,
        length=length,
        batch_size=batch_size,
        pad_id=tokenizer.pad_token_id,
        seed=settings["seed"],
        accumulate=settings["accumulate"],
    )
    return data, num_bytes


def _trainer(settings: dict, parts: dict, folder: Path):
    periodic = periodic_checkpoints(folder=folder / "checkpoints", every=settings["checkpoint_every"])
    return make_trainer(
        parts["trainer"],
        steps=settings["steps"],
        callbacks=[periodic, *filter(None, [parts["callbacks.progress"]])],
        loggers=open_loggers(loggers_of(parts), config=settings, folder=folder),
        folder=folder,
        validate_every=settings["eval_every"] * settings["accumulate"],
        accumulate_grad_batches=settings["accumulate"],
        gradient_clip_val=settings["clip"],
    )


def save_target(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, facts: dict) -> None:
    """A model folder: weights in bf16 safetensors, configuration, tokenizer, and a card of ``facts``."""
    model.to(torch.bfloat16).save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    card = CARD.format(kind=model.config.model_type.replace("_", "-"), name=type(model).__name__)
    write_whole(folder / "README.md", f"{card}\n| what | value |\n| --- | --- |\n{rows}\n")


CARD = """\
# A tiny {kind} target

A `{name}` with few parameters, trained by this repository as a real target for drafts; byte-level BPE with harmony's
special tokens, a reserved mask token and a chat template. It writes Python that looks right and does not run. Whole
files were held out.
"""
