"""Time and peak memory of the draft's training attention: other forms against the dense one, flex on a GPU.

    python benchmarks/attention.py [--json PATH] [--device cuda] [--cases 512x64 2048x256] [--window 128] [--repeats 5]
    python benchmarks/attention.py --cases 384x24 --batch-size 8 --num-heads 3 --num-kv-heads 1 --window 128

The second line has the sizes of the default run; --matmul medium is how it multiplies. One layer, forward and backward,
its mask included. Repeats of the forms take turns, so that a busy machine slows all alike; medians are compared.
Peak memory is what the run adds to the inputs: on a CPU the growth of the resident set (ru_maxrss) of a process forked
for this one run, on a GPU the allocator's peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from instruments import PeakMemory, on_device, wait

from dflash.draft.attention import BlockAttention, Dense, Flex, TwoPiece, Windowed
from dflash.draft.mask import BlockGeometry

FORMS: dict[str, Callable[[], BlockAttention]] = {
    "two pieces": TwoPiece,
    "dense": Dense,
    "windowed": Windowed,
    "flex": Flex,
}
CASES = ("512x32", "512x64", "512x128", "1024x64", "1024x128", "2048x128")


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement. ``length``: tokens of context in a row."""

    length: int
    num_anchors: int
    batch_size: int
    block_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    device: str


def build(case: Case):
    """(geometry, window, query, context keys and values, block keys and values) from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    B, S, A, K = case.batch_size, case.length, case.num_anchors, case.block_size

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, case.head_dim, generator=generator).to(case.device).requires_grad_()

    anchors = torch.stack([torch.randperm(S - 1, generator=generator)[:A].sort().values + 1 for _ in range(B)])
    geometry = BlockGeometry(
        positions_BS=torch.arange(S).expand(B, S).to(case.device),
        positions_BAK=(anchors[..., None] + torch.arange(K)).to(case.device),
        documents_BS=torch.zeros(B, S, dtype=torch.long, device=case.device),
        block_documents_BA=torch.zeros(B, A, dtype=torch.long, device=case.device),
        anchors_BA=anchors.to(case.device),
        block_size=K,
    )
    context = tensor(B, S, case.num_kv_heads), tensor(B, S, case.num_kv_heads)
    block = tensor(B, A, K, case.num_kv_heads), tensor(B, A, K, case.num_kv_heads)
    return geometry, case.window, tensor(B, A, K, case.num_heads), context, block


def run_once(attention: BlockAttention, inputs) -> float:
    """Seconds of one forward and backward."""
    geometry, window, query, context, block = inputs
    wait(query.device.type)
    start = time.perf_counter()
    mask = attention.prepare(geometry, {window})[window]
    attention(query, context, block, mask).square().sum().backward()
    wait(query.device.type)
    seconds = time.perf_counter() - start
    for tensor in (query, *context, *block):
        tensor.grad = None
    return seconds


def measure_times(case: Case, forms: list[str], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat, the forms taking turns, after one run of each that does not count."""
    inputs = build(case)
    attentions = {name: FORMS[name]() for name in forms}
    for attention in attentions.values():
        run_once(attention, inputs)
    seconds = {name: [] for name in forms}
    for _ in range(repeats):
        for name, attention in attentions.items():
            seconds[name].append(run_once(attention, inputs))
    return seconds


def measure_memory(case: Case, form: str) -> float:
    """MiB that one forward and backward adds to its inputs at its peak."""
    inputs, attention = build(case), FORMS[form]()
    if case.device == "cuda":
        run_once(attention, inputs)  # compiles, where there is something to compile
    memory = PeakMemory(case.device)
    run_once(attention, inputs)
    return memory.added() / 2**20


def measure(case: Case, forms: list[str], repeats: int) -> dict:
    """What is reported of one case."""
    times = on_device(case.device, measure_times, case, forms, repeats)
    results = {
        form: {
            "seconds": times[form],
            "median_seconds": statistics.median(times[form]),
            "peak_mib": on_device(case.device, measure_memory, case, form),
        }
        for form in forms
    }
    dense = results["dense"]
    for result in results.values():
        result["speed_against_dense"] = dense["median_seconds"] / result["median_seconds"]
        result["memory_against_dense"] = result["peak_mib"] / dense["peak_mib"]
    return {"case": asdict(case), "results": results}


def table(records: list[dict]) -> str:
    """One line per case and form."""
    lines = [f"{'length':>6} {'anchors':>7}  {'form':<10} {'ms':>9} {'speed':>7} {'peak MiB':>9} {'memory':>7}"]
    for record in records:
        case = record["case"]
        for form, result in record["results"].items():
            lines.append(
                f"{case['length']:>6} {case['num_anchors']:>7}  {form:<10} {result['median_seconds'] * 1e3:>9.1f} "
                f"{result['speed_against_dense']:>6.2f}x {result['peak_mib']:>9.1f} "
                f"{result['memory_against_dense']:>6.2f}x"
            )
    return "\n".join([*lines, "speed and memory: against the dense form of the same case"])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="+", default=CASES, help="context length x anchors, such as 2048x256")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--block-size", type=int, default=8)
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--num-kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--window", type=int, help="tokens that a slot sees; default: all")
    parser.add_argument(
        "--matmul", choices=("highest", "high", "medium"), default="highest", help="see dflash/training/products.py"
    )
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    torch.set_float32_matmul_precision(options.matmul)
    forms = ["two pieces", "dense", "windowed"] + (["flex"] if options.device == "cuda" else [])
    shared = ("batch_size", "block_size", "num_heads", "num_kv_heads", "head_dim", "window", "device")
    records = []
    for number, name in enumerate(options.cases, 1):
        length, anchors = map(int, name.split("x"))
        print(f"case {number} of {len(options.cases)}: {length} tokens, {anchors} anchors", flush=True)
        case = Case(length, anchors, **{key: getattr(options, key) for key in shared})
        records.append(measure(case, forms, options.repeats))
    if options.json is not None:
        options.json.write_text(json.dumps({"torch": torch.__version__, "records": records}, indent=2) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
