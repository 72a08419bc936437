"""What an export takes from the target: facts from its config.json, and its embedding and head where a format asks.

Only those two matrices are read, never the whole model.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file

from dflash.hub.bundle import EMBEDDING, HEAD, TargetFacts
from dflash.hub.folder import CONFIG, read_headers
from dflash.hub.tensors import Header


def find_target(name: str) -> Path:
    """The folder of a target: ``name`` itself, or what the local cache of the model hub holds under it.

    Nothing is downloaded. Raises ValueError where there is none.
    """
    if (Path(name) / CONFIG).is_file():
        return Path(name)
    try:
        cached = cached_file(name, CONFIG, local_files_only=True)
    except (OSError, ValueError):
        cached = None
    if cached is None:
        raise ValueError(f"target {name!r}: no model folder and not in the hub's local cache; give --target FOLDER")
    return Path(cached).parent


def read_facts(folder: Path, *, name: str) -> TargetFacts:
    """From config.json; ``name`` is what serving commands call the target."""
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    text = values.get("text_config") or values
    if "vocab_size" not in text:
        raise ValueError(f"target {name!r}: no vocab_size in its {CONFIG}; give the folder of a language model")
    return TargetFacts(
        vocab_size=text["vocab_size"],
        name=name,
        architectures=tuple(values.get("architectures") or ()),
        bos_token_id=text.get("bos_token_id"),
        eos_token_id=text.get("eos_token_id"),
    )


def read_shared(folder: Path, *, vocab_size: int, hidden_size: int) -> dict[str, Tensor]:
    """The target's embedding and head under the names formats give them; tied ones are the same matrix.

    Raises ValueError where they cannot be told from the folder's tensor names.
    """
    headers, _ = read_headers(folder)
    size = (vocab_size, hidden_size)
    embedding = _named(headers, EMBEDDING, size, folder)
    values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tied = values.get("tie_word_embeddings", False) and not any(name.endswith(HEAD) for name in headers)
    return {
        EMBEDDING: _read(folder, headers, embedding),
        HEAD: _read(folder, headers, embedding if tied else _named(headers, HEAD, size, folder)),
    }


def _named(headers: dict[str, Header], ending: str, size: tuple[int, int], folder: Path) -> str:
    found = [name for name, header in headers.items() if name.endswith(ending) and header.shape == size]
    if len(found) != 1:
        raise ValueError(f"target {folder}: wanted one tensor ...{ending} of {list(size)}, found {found or 'none'}")
    return found[0]


def _read(folder: Path, headers: dict[str, Header], name: str) -> Tensor:
    with safe_open(folder / headers[name].file, framework="pt") as stream:
        return stream.get_tensor(name)
