"""Which tensors a draft has: their names and shapes, from its shape alone; and what is wrong with those of a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dflash.draft.shape import DraftShape

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names -> torch's


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of one tensor before it is read. ``file``: which of the folder's files holds it."""

    dtype: str
    shape: tuple[int, ...]
    file: str = ""


def tensor_shapes(shape: DraftShape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of ``Draft(shape)``: 11 per layer, 4 biases more with ``attention_bias``, and 3."""
    hidden = shape.hidden_size
    sizes = {"fc.weight": (hidden, len(shape.taps) * hidden), "hidden_norm.weight": (hidden,), "norm.weight": (hidden,)}
    for i in range(shape.depth):
        sizes |= {f"layers.{i}.{name}": size for name, size in _layer(shape)}
    return sizes


def _layer(shape: DraftShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, width = shape.hidden_size, shape.intermediate_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    for name, size in {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}.items():
        yield f"self_attn.{name}_proj.weight", size
        if shape.attention_bias:
            yield f"self_attn.{name}_proj.bias", size[:1]
    yield "self_attn.q_norm.weight", (shape.head_dim,)
    yield "self_attn.k_norm.weight", (shape.head_dim,)
    yield "mlp.gate_proj.weight", (width, hidden)
    yield "mlp.up_proj.weight", (width, hidden)
    yield "mlp.down_proj.weight", (hidden, width)
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)


def tensor_findings(
    found: Mapping[str, Header],
    shape: DraftShape,
    *,
    vocab_size: int,
    optional: tuple[str, ...] = (),
) -> list[str]:
    """Every tensor that is missing, extra, misshapen or of a type that holds no plain weights.

    optional: names of [vocab_size, hidden_size] matrices that may be there.
    """
    wanted = tensor_shapes(shape)
    allowed = wanted | dict.fromkeys(optional, (vocab_size, shape.hidden_size))
    findings = [f"tensor {name} is missing; wanted {list(wanted[name])}" for name in sorted(wanted.keys() - found)]
    findings += [f"tensor {name} has no place in this draft" for name in sorted(found.keys() - allowed)]
    for name in sorted(allowed.keys() & found):
        header = found[name]
        if header.shape != allowed[name]:
            findings.append(f"tensor {name} is {list(header.shape)}; wanted {list(allowed[name])}")
        if header.dtype not in FLOATS:
            findings.append(f"tensor {name} is of type {header.dtype}; wanted one of {', '.join(FLOATS)}")
    return findings
