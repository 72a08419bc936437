"""Decoding speed, every contender side by side: ours, and what transformers' generate offers for the same models.

    python benchmarks/decode.py [--checkpoint latest] [--prompts 32] [--tokens 96] [--repeats 3] [--out FOLDER]

One target, one draft, greedy, the same prompts. Repeats take turns over all contenders, so that a busy machine slows
them alike; a contender's time is the median over repeats of its seconds over all prompts, prefill included; what ours
make without it stands beside that. Prompts that find no place in a batch wait for one. Contenders whose tokens are not
the target's own are marked. Beside the table: where a round's time goes, the speedup that these
terms allow (acceptance / (t_verify + t_draft) in steps of the loop), batches, and context lengths from 128 tokens up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from instruments import require_device
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from round_parts import parts_of_round

from dflash.allocator import keep_freed_memory
from dflash.data.prompts import read_prompts
from dflash.decode.baseline import AutoregressiveDecoder
from dflash.decode.decoder import SpeculativeDecoder
from dflash.decode.verify import DDTree
from dflash.draft.draft import Draft
from dflash.evaluation.plots import render, tidy
from dflash.hub.assistant import load_assistant
from dflash.hub.transfer import export
from dflash.replay import CALLS_TO_SETTLE, recording_at_once
from dflash.target.load import LoadedTarget, local_target
from dflash.target.target import Target
from dflash.training.checkpoint import find_checkpoint, load_draft

Prompts = Sequence[Sequence[int]]
Tokens = list[list[int]]
Contender = Callable[[Prompts], tuple[Tokens, float | None]]  # new tokens, and seconds of prefill if it tells them
SHORT_BLOCK = 4  # in large batches verification is bound by arithmetic, and the last slots of a block do not pay


def ours(decoder, *, batch_size: int, tokens: int, stops: Sequence[int]) -> Contender:
    """One of our decoders, so many prompts at a time."""

    def run(prompts: Prompts) -> tuple[Tokens, float]:
        limits = {"max_new_tokens": tokens, "stop_token_ids": stops}
        traces, timing = decoder.generate(prompts, batch_size=batch_size, **limits)
        return [list(trace.tokens) for trace in traces], timing.prefill_seconds

    return run


def theirs(loaded: LoadedTarget, *, tokens: int, **options) -> Contender:
    """transformers' generate, prompt by prompt."""
    model, pad = loaded.target.model, loaded.tokenizer.pad_token_id

    def run(prompts: Prompts) -> tuple[Tokens, None]:
        found = []
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=pad,
                eos_token_id=list(loaded.stop_token_ids), **options,
            )  # fmt: skip
            found.append(out[0, len(prompt) :].tolist())
        return found, None

    return run


def contenders(loaded: LoadedTarget, draft, checkpoint: Path, folder: Path, *, tokens: int) -> dict[str, Contender]:
    """Name -> contender; the first is the loop that all are held against, batch by batch.

    Eager: without replayed steps. transformers knows the published draft only, without heads and variations.
    """
    eager = Target(loaded.target.model, name=loaded.target.name)
    loop, chain = AutoregressiveDecoder(loaded.target), SpeculativeDecoder(loaded.target, draft)
    tree = SpeculativeDecoder(loaded.target, draft, verifier=DDTree(num_nodes=16))
    limits = {"tokens": tokens, "stops": loaded.stop_token_ids}
    found = {f"ours: loop, batch {size}": ours(loop, batch_size=size, **limits) for size in (1, 4, 16)}
    found |= {f"ours: draft, batch {size}": ours(chain, batch_size=size, **limits) for size in (1, 4, 16)}
    shorter = SpeculativeDecoder(loaded.target, draft, block_size=SHORT_BLOCK)
    found[f"ours: draft, blocks of {SHORT_BLOCK}, batch 16"] = ours(shorter, batch_size=16, **limits)
    found["ours: draft, tree of 16, batch 1"] = ours(tree, batch_size=1, **limits)
    found["ours: loop, batch 1, eager"] = ours(AutoregressiveDecoder(eager), batch_size=1, **limits)
    found["ours: draft, batch 1, eager"] = ours(SpeculativeDecoder(eager, draft), batch_size=1, **limits)
    found["transformers: loop"] = theirs(loaded, tokens=tokens)
    found["transformers: prompt lookup"] = theirs(loaded, tokens=tokens, prompt_lookup_num_tokens=7)
    if not draft.shape.variations:
        export(checkpoint, folder, format="transformers", target=loaded.target.name)
        helper = load_assistant(folder)
        found["transformers: dflash"] = theirs(loaded, tokens=tokens, assistant_model=helper, speculation_type="dflash")
    return found


def race(field: dict[str, Contender], prompts: Prompts, *, repeats: int, console: Console) -> dict[str, dict]:
    """Seconds and tokens of every contender, warm, repeats taking turns."""
    with recording_at_once():  # what can be recorded is recorded before anything is timed
        for contender in track(field.values(), "warm-up", console=console):
            for _ in range(CALLS_TO_SETTLE):  # as rows leave a batch, some shapes occur but once in a call
                contender(prompts)
    seconds: dict[str, list[float]] = {name: [] for name in field}
    prefills: dict[str, list[float | None]] = {name: [] for name in field}
    outputs = {}
    for _ in track(range(repeats), "repeats", console=console):
        for name, contender in field.items():
            started = time.perf_counter()
            outputs[name], prefill = contender(prompts)
            seconds[name].append(time.perf_counter() - started)
            prefills[name].append(prefill)
    own = outputs[next(iter(field))]
    return {
        name: {
            "seconds": values,
            "prefill_seconds": prefills[name],
            "tokens_per_second": sum(map(len, outputs[name])) / statistics.median(values),
            "tokens_per_second_after_prefill": rate_after(outputs[name], values, prefills[name]),
            "equal": sum(a == b for a, b in zip(outputs[name], own, strict=True)),
            "of": len(own),
        }
        for name, values in seconds.items()
    }


def rate_after(output: Tokens, seconds: list[float], prefills: list[float | None]) -> float | None:
    """Tokens per second behind the first of each prompt, which its prefill decides."""
    left = [whole - prefill for whole, prefill in zip(seconds, prefills, strict=True) if prefill is not None]
    return (sum(map(len, output)) - len(output)) / statistics.median(left) if left else None


def median_seconds(call: Callable[[], object], *, repeats: int = 30) -> float:
    with recording_at_once():
        for _ in range(CALLS_TO_SETTLE):
            call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@torch.no_grad()
def terms(loaded: LoadedTarget, draft, prompt: Sequence[int]) -> dict[str, float]:
    """Seconds of the parts of a round at batch 1: a step of the loop, verification, and the draft's work."""
    target, ids = loaded.target, torch.tensor([prompt], device=loaded.target.device)
    loop, one = target.open(1, capacity=len(prompt) + 2), ids[:, :1]
    loop.advance(ids)
    loop.keep(torch.full_like(ids[:, 0], len(prompt)), lengths=[len(prompt)])
    work = {"step": lambda: target.logits(loop.advance(one)[0])} | parts_of_round(target, draft, ids)
    return {name: median_seconds(call) for name, call in work.items()}


def at_lengths(loaded: LoadedTarget, draft, lengths: Sequence[int], *, tokens: int) -> list[dict]:
    """Decode speed, prefill apart, behind contexts of these lengths: the target's own text, cut or repeated."""
    rows = []
    loop, chain = AutoregressiveDecoder(loaded.target), SpeculativeDecoder(loaded.target, draft)
    text = loaded.tokenizer(Path(json.__file__).with_name("decoder.py").read_text())["input_ids"]
    for length in lengths:
        prompt = (text * (length // len(text) + 1))[:length]
        row = {"context_tokens": length}
        for name, decoder in (("loop", loop), ("draft", chain)):
            with recording_at_once():
                decoder.generate([prompt], max_new_tokens=tokens)
            runs = [decoder.generate([prompt], max_new_tokens=tokens) for _ in range(3)]
            rates = [(len(traces[0].tokens) - 1) / timing.decode_seconds for traces, timing in runs]
            row[f"{name}_tokens_per_second"] = statistics.median(rates)
        trace = runs[-1][0][0]
        row["acceptance"] = (len(trace.tokens) - 1) / len(trace.lengths)
        dims = loaded.target.dims
        values = 2 * dims.num_layers * dims.num_kv_heads * dims.head_dim * (length + tokens)
        row["kv_cache_mib"] = values * loaded.target.dtype.itemsize / 2**20
        rows.append(row)
    return rows


def show(result: dict, console: Console) -> None:
    first = next(iter(result["race"].values()))["tokens_per_second"]
    table = Table(title=f"greedy, {result['prompts']} prompts, {result['tokens']} new tokens")
    for column in ("contender", "tok/s", "x our loop, batch 1", "tok/s after prefill", "equal to it"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for name, row in result["race"].items():
        rate, after = row["tokens_per_second"], row["tokens_per_second_after_prefill"]
        shown = "-" if after is None else f"{after:.0f}"
        table.add_row(name, f"{rate:.0f}", f"{rate / first:.2f}", shown, f"{row['equal']} of {row['of']}")
    console.print(table)
    parts = result["terms"]
    in_steps = ", ".join(f"{name} {seconds / parts['step']:.2f}" for name, seconds in parts.items())
    console.print(f"a round in steps of the loop ({1000 * parts['step']:.2f} ms): {in_steps}")
    console.print(
        f"acceptance {result['acceptance']:.2f}: at most {result['limit']:.2f}x by these terms, "
        f"{result['ideal_limit']:.2f}x if verification cost one step"
    )
    for row in result["lengths"]:
        console.print(", ".join(f"{key} {value:.4g}" for key, value in row.items()))


def picture(result: dict) -> bytes:
    """Tokens per second of every contender, as a PNG."""
    figure = Figure(figsize=(7.5, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    tidy(axes)
    names = list(result["race"])[::-1]
    bars = axes.barh(names, [result["race"][name]["tokens_per_second"] for name in names])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_xlabel(f"tokens per second, greedy, prefill included ({result['threads']} threads)")
    return render(figure)


def race_parser(description: str, *, prompts: int, name: str) -> argparse.ArgumentParser:
    """A parser of what ``load`` and ``race`` need; ``name``: of the script, and so of its JSON file."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", default="outputs/latest", help="run folder or checkpoint (%(default)s)")
    parser.add_argument("--target", default="assets/tiny_gpt_oss", help="model folder (%(default)s)")
    parser.add_argument("--prompts", type=int, default=prompts)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default=f"outputs/benchmarks/{name}", help=f"folder of {name}.json (%(default)s)")
    return parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = race_parser(__doc__.split("\n")[0], prompts=32, name="decode")
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 512, 2048, 8192])
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, console = parse(arguments), Console()
    try:
        result = measure(options, console)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "decode.json").write_text(json.dumps(result, indent=2))
    (out / "decode.png").write_bytes(picture(result))
    show(result, console)
    return 0


def load(options: argparse.Namespace) -> tuple[LoadedTarget, Path, Draft, list[list[int]]]:
    """The target with replayed steps, the draft's checkpoint, the draft, and the prompts' ids."""
    require_device(options.device, otherwise="--device cpu")
    keep_freed_memory()
    loaded = local_target(path=options.target, attention="fused", experts="dense", device=options.device, replay=True)()
    checkpoint = find_checkpoint(options.checkpoint)
    draft = load_draft(checkpoint, loaded)
    prompts = read_prompts("assets/prompts/held_out.jsonl", loaded.tokenizer, count=options.prompts)
    return loaded, checkpoint, draft, [list(prompt.ids) for prompt in prompts]


def measure(options: argparse.Namespace, console: Console) -> dict:
    """The race, the terms of a round and what long contexts cost; what is kept as JSON."""
    loaded, checkpoint, draft, ids = load(options)
    with tempfile.TemporaryDirectory() as folder:
        field = contenders(loaded, draft, checkpoint, Path(folder) / "assistant", tokens=options.tokens)
        raced = race(field, ids, repeats=options.repeats, console=console)
    traces, _ = SpeculativeDecoder(loaded.target, draft).generate(
        ids, max_new_tokens=options.tokens, stop_token_ids=loaded.stop_token_ids
    )
    acceptance = sum(sum(t.lengths) for t in traces) / sum(len(t.lengths) for t in traces)
    parts = terms(loaded, draft, max(ids, key=len))
    work = parts["propose"] + parts["extend"]
    return {
        "prompts": len(ids), "tokens": options.tokens, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "race": raced, "terms": parts, "acceptance": acceptance,
        "limit": acceptance * parts["step"] / (parts["verify"] + work),
        "ideal_limit": acceptance / (1 + work / parts["step"]),
        "lengths": at_lengths(loaded, draft, options.lengths, tokens=64),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
