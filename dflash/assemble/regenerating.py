"""``python -m dflash.data regenerate``: from settings to prompts, engine and folder, and the counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dflash.assemble.data import DataRecipe
from dflash.assemble.parts import build_parts, reading_of, ready_device
from dflash.compose import read_settings
from dflash.data.prompts import Prompt
from dflash.data.regeneration.engine import Question
from dflash.data.regeneration.folder import ResponseFolder
from dflash.data.regeneration.run import Tally, regenerate_set
from dflash.data.rows import BadLines
from dflash.decode.sampling import Sampling


def regenerate(overrides: Sequence[str], console: Console) -> bool:
    """Have the target answer the prompts of a data set; whether every prompt has its outcome now.

    Raises ValueError for whatever is wrong with the settings or the engine.
    """
    settings = read_settings("regenerate", overrides)
    parts = build_parts(settings, {"target": None, "data": DataRecipe, "engine": object})
    names = ("temperature", "seed", "top_k", "top_p", "min_p")
    sampling = Sampling(**{name: settings[name] for name in names})
    ready_device(settings["device"])
    recipe: DataRecipe = parts["data"]
    reading = reading_of(settings["target"], parts["target"])
    prompts = recipe.questions(reading, max_tokens=settings["max_prompt_tokens"], count=settings["count"])
    limit = settings["max_new_tokens"]
    engine = parts["engine"].open(reading, parts["target"], sampling=sampling, max_new_tokens=limit)
    decided_by = {"tokenizer_sha256": reading.tokenizer_fingerprint(), "max_new_tokens": limit}
    decided_by |= {name: settings[name] for name in names if name != "seed" or not sampling.greedy}
    identity = {**engine.identity(), **decided_by}
    folder = ResponseFolder(settings["out"], identity=identity, about={"settings": settings})
    with progress(console, total=settings["count"]) as watch:
        tally = regenerate_set(
            numbered(prompts),
            engine,
            folder,
            watch=watch,
            **{name: settings[name] for name in ("shard_size", "keep_truncated", "accept_failures", "give_up_after")},
        )
    console.print(table(tally, recipe.bad_lines))
    console.print(closing(tally, folder.path), soft_wrap=True, markup=False)
    return not tally.failures


def numbered(prompts: Iterator[Prompt]) -> Iterator[Question]:
    """The prompts, numbered."""
    for index, prompt in enumerate(prompts):
        yield Question(index, prompt.name, prompt.ids)


@contextmanager
def progress(console: Console, *, total: int | None) -> Iterator[Callable[[Tally], None]]:
    """A progress bar with counts; gives the ``watch`` of ``regenerate_set``."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[counts]}"), console=console) as shown:
        task = shown.add_task("prompts", total=total, counts="")

        def watch(tally: Tally) -> None:
            refused, failed = tally.refusals.total(), tally.failures.total()
            counts = f"{tally.num_response_tokens:,} tokens, {refused} refused, {failed} failed"
            shown.update(task, completed=tally.num_prompts, counts=counts)

        yield watch


def table(tally: Tally, bad_lines: BadLines) -> Table:
    """Every count, those of refusals, failures and bad rows by reason."""
    shown = Table(title="Regeneration", title_justify="left")
    shown.add_column("outcome")
    shown.add_column("prompts", justify="right")
    shown.add_row("answered", f"{tally.num_answered:,}")
    shown.add_row("  of them cut by the length limit", f"{tally.num_truncated:,}")
    shown.add_row("  of them encoded again from text", f"{tally.num_encoded_again:,}")
    shown.add_row("duplicates of earlier prompts", f"{tally.num_duplicates:,}")
    for what, counts in (("refused", tally.refusals), ("failed", tally.failures), ("bad row", bad_lines.counts)):
        for reason, count in sorted(counts.items()):
            shown.add_row(f"{what}: {reason}", f"{count:,}")
    shown.add_section()
    shown.add_row("all with an outcome", f"{tally.num_prompts:,}")
    shown.add_row("  of them known from an earlier run", f"{tally.num_known:,}")
    shown.add_row("tokens of responses", f"{tally.num_response_tokens:,}")
    return shown


def closing(tally: Tally, path: Path) -> str:
    """What to do next, in a sentence."""
    if tally.failures:
        return (
            f"{tally.failures.total()} prompts got no answer and stay open: give the same command again to ask them "
            "once more, or with accept_failures=true to leave them out"
        )
    return f"{path}: train on it with data=file data.path={path}; prompts without a row are listed in left_out.jsonl"
