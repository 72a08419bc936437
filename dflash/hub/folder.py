"""Draft folders on disk: config.json and safetensors, nothing else; no pickle, no code of the folder's is ever run.

``examine`` reads configuration and tensor headers only, without any heavy library, so that a wrong folder is told in
milliseconds and before a target is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dflash.hub.assistant_format import Assistant
from dflash.hub.bundle import Description
from dflash.hub.format import Format
from dflash.hub.speculators import Speculators
from dflash.hub.tensors import Header, tensor_findings
from dflash.hub.zlab import Zlab

FORMATS: tuple[Format, ...] = (Zlab(), Speculators(), Assistant())
CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
LONGEST_HEADER = 100_000_000  # bytes; what safetensors itself takes
# Keys that decide how many tensors there are and how large: without them there is nothing to hold tensors against.
_SIZES = {
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "attention_bias", "vocab_size", "target_layer_ids", "aux_hidden_state_layer_ids"),
}


def is_draft_folder(path: str | Path) -> bool:
    """Whether ``path`` is meant as a draft folder: a folder with a config.json. Runs of train.py have none."""
    return (Path(path) / CONFIG).is_file()


def format_named(name: str) -> Format:
    """Raises ValueError where there is none of this name."""
    for form in FORMATS:
        if form.name == name:
            return form
    raise ValueError(f"--format {name}: choose one of {', '.join(form.name for form in FORMATS)}")


def read_config(path: str | Path) -> tuple[Format, dict[str, Any]]:
    """The format of a folder, and its config.json. Raises ValueError where it is unreadable or of no known format."""
    path = Path(path)
    config = _read_json(path / CONFIG)
    for form in FORMATS:
        if form.matches(config):
            return form, config
    raise ValueError(
        f"draft folder {path}: architectures {config.get('architectures')} is of no draft format known here "
        f"({', '.join(form.name for form in FORMATS)}); is it the target's folder?"
    )


def examine(path: str | Path, *, num_target_layers: int | None = None) -> Description:
    """A folder understood from its configuration and tensor headers, with every finding on both.

    Raises ValueError where there is nothing to understand: no such format, no weights.
    """
    form, config = read_config(path)
    headers, findings = read_headers(path)
    known = understand(form, config, headers, num_target_layers=num_target_layers)
    return replace(known, findings=(*known.findings, *findings))


def understand(
    form: Format, config: Mapping[str, Any], headers: Mapping[str, Header], *, num_target_layers: int | None = None
) -> Description:
    """A configuration and the headers of its tensors, with every finding on both; never raises."""
    known = form.from_config(config, num_target_layers=num_target_layers)
    if known.unfit & _SIZES:
        return known
    carried = tuple(name for name in form.shared if name in headers)
    wrong = tensor_findings(headers, known.shape, vocab_size=known.facts.vocab_size, optional=carried)
    return replace(known, findings=(*known.findings, *wrong))


def read_headers(path: str | Path) -> tuple[dict[str, Header], list[str]]:
    """(tensor name -> header over all weight files, findings). Raises ValueError where there is no safetensors file."""
    path = Path(path)
    headers: dict[str, Header] = {}
    findings: list[str] = []
    for name in _weight_files(path):
        for tensor, header in _file_headers(path / name).items():
            if tensor in headers:
                findings.append(f"tensor {tensor} is in {headers[tensor].file} and in {name}")
            headers[tensor] = header
    return headers, findings


def _weight_files(path: Path) -> list[str]:
    if (path / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (path / INDEX).is_file():
        others = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        pickled = f"; {', '.join(others)} would need pickle, which may run code" if others else ""
        raise ValueError(f"{path}: no {WEIGHTS} and no {INDEX} there{pickled}")
    weight_map = _read_json(path / INDEX).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{path}: {INDEX} names {name!r}, which is no safetensors file beside it")
        if not (path / name).is_file():
            raise ValueError(f"{path}: {INDEX} names {name}, which is not there")
    if not names:
        raise ValueError(f"{path}: {INDEX} names no files")
    return names


def _file_headers(file: Path) -> dict[str, Header]:
    """A safetensors file starts with the length of a JSON object, 8 bytes little-endian, and that object."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            entries = json.loads(stream.read(length))
            return {
                name: Header(str(entry["dtype"]), tuple(entry["shape"]), file.name)
                for name, entry in entries.items()
                if name != "__metadata__"
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold an object")
    return values
