"""Drafts between our form and a format's: dictionaries in, dictionaries out; and the same to and from folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dflash.hub.bundle import SHARED, Bundle, Description
from dflash.hub.folder import CONFIG, WEIGHTS, examine, read_headers, understand
from dflash.hub.format import Format
from dflash.hub.keys import complain
from dflash.hub.tensors import FLOATS, Header, tensor_findings

TORCH_TYPES = {getattr(torch, name): short for short, name in FLOATS.items()}


def to_folder_form(form: Format, bundle: Bundle) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors) of a draft in a format. Raises ValueError where the format cannot hold it.

    Formats that carry the target's matrices need them in ``bundle.shared``; the others leave them out.
    """
    dtype = bundle.weights["fc.weight"].dtype
    config = form.to_config(bundle.shape, bundle.facts, dtype=str(dtype).removeprefix("torch."))
    missing = [name for name in form.shared if name not in bundle.shared]
    if missing:
        raise ValueError(f"--format {form.name} carries the target's {', '.join(missing)}; give --target FOLDER")
    tensors = dict(bundle.weights) | {name: bundle.shared[name] for name in form.shared}
    findings = tensor_findings(
        headers_of(tensors), bundle.shape, vocab_size=bundle.facts.vocab_size, optional=form.shared
    )
    complain("the draft to export", findings)
    return config, tensors


def from_folder_form(
    form: Format,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    num_target_layers: int | None = None,
) -> Bundle:
    """The inverse. Raises ValueError that lists every wrong key and tensor."""
    known = understand(form, config, headers_of(tensors), num_target_layers=num_target_layers)
    complain("the draft folder", known.findings)
    return _bundle(known, tensors)


def _bundle(known: Description, tensors: Mapping[str, Tensor]) -> Bundle:
    weights = {name: tensor for name, tensor in tensors.items() if name not in SHARED}
    shared = {name: tensor for name, tensor in tensors.items() if name in SHARED}
    return Bundle(known.shape, known.facts, weights, shared, known.notes)


def headers_of(tensors: Mapping[str, Tensor]) -> dict[str, Header]:
    """What a safetensors file of these tensors would say of them."""
    return {k: Header(TORCH_TYPES.get(t.dtype, str(t.dtype)), tuple(t.shape)) for k, t in tensors.items()}


def read_folder(path: str | Path, *, num_target_layers: int | None = None) -> Bundle:
    """A draft folder of any known format, on the CPU, in the types it is stored in.

    Raises ValueError that lists everything wrong with it, before any tensor is read.
    """
    known = examine(path, num_target_layers=num_target_layers)
    complain(f"draft folder {path}", known.findings)
    headers, _ = read_headers(path)
    tensors: dict[str, Tensor] = {}
    for file in sorted({header.file for header in headers.values()}):
        with safe_open(Path(path) / file, framework="pt") as stream:
            tensors |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    return _bundle(known, tensors)


def write_folder(path: str | Path, form: Format, bundle: Bundle, *, card: str) -> None:
    """Write config.json, model.safetensors and README.md (``card``) into a new folder; it appears whole or not at all.

    Raises ValueError where ``path`` exists and is not an empty folder.
    """
    path = Path(path)
    config, tensors = to_folder_form(form, bundle)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there and not an empty folder; give a new one")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.mkdir(parents=True)
        # Tied matrices share memory, which safetensors refuses: each gets its own.
        save_file({k: t.contiguous().clone() for k, t in tensors.items()}, unfinished / WEIGHTS, {"format": "pt"})
        (unfinished / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        if path.is_dir():
            path.rmdir()
        unfinished.rename(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
