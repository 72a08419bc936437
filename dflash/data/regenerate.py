"""On-policy distillation: the target writes the responses that the draft learns from, cached as Parquet shards.

Stands between prompts and packing. The decoder is handed in, so that data knows nothing of decoding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from dflash.data.documents import Document
from dflash.data.prompts import Prompt

Generate = Callable[[list[list[int]], int], Sequence[Sequence[int]]]

logger = logging.getLogger(__name__)


def regenerate(
    prompts: Sequence[Prompt],
    *,
    generate: Generate,
    fingerprint: Mapping[str, Any],
    cache_dir: str | Path,
    batch_size: int,
    shard_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> list[Document]:
    """One document per prompt, in order: the prompt's ids unsupervised, the target's response supervised.

    generate: (ids of consecutive prompts, index of the first) -> their responses, stop token included. Anything random
    in it must depend on a prompt's index only; then a continued run equals an uninterrupted one.
    fingerprint: plain values, everything else that decides the responses (target, tokenizer, sampling, length, ...).
    Together with the prompts it names the cache folder, so that a changed input never meets an old response.
    Shards of ``shard_size`` prompts are written whole or not at all, and read back with their checksums verified.
    progress: called with (prompts done, prompts in all).
    """
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"data: batch_size={batch_size} and shard_size={shard_size} must be at least 1")
    folder = _open_cache(Path(cache_dir), {**fingerprint, "prompts_sha256": prompts_hash(prompts)})
    report = progress or (lambda done, total: None)
    documents: list[Document] = []
    report(0, len(prompts))
    for first in range(0, len(prompts), shard_size):
        shard = prompts[first : first + shard_size]
        path = folder / f"{first:08d}-{first + len(shard) - 1:08d}.parquet"
        responses = _read_shard(path, shard)
        if responses is None:
            done = lambda at, first=first: report(first + at, len(prompts))
            responses = _generate_shard(shard, first, generate, batch_size, done)
            _write_shard(path, shard, responses)
        else:
            report(first + len(shard), len(prompts))
        documents += [_document(prompt, response) for prompt, response in zip(shard, responses, strict=True)]
    return documents


def fingerprint_hash(fingerprint: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of the fingerprint as canonical JSON. Raises ValueError if it holds more than plain values."""
    return hashlib.sha256(_canonical(fingerprint).encode()).hexdigest()


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """SHA-256, in hex, of the prompts' names and ids."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.name, list(prompt.ids)]).encode())
    return digest.hexdigest()


def cache_folder(prompts: Sequence[Prompt], *, fingerprint: Mapping[str, Any], cache_dir: str | Path) -> Path:
    """Where ``regenerate`` keeps the responses to these prompts."""
    return Path(cache_dir) / fingerprint_hash({**fingerprint, "prompts_sha256": prompts_hash(prompts)})


def _canonical(fingerprint: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(fingerprint), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data: the fingerprint of a regeneration must be plain JSON values: {error}") from error


def _open_cache(cache_dir: Path, everything: dict) -> Path:
    folder = cache_dir / fingerprint_hash(everything)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    text = json.dumps(everything, sort_keys=True, indent=2) + "\n"
    if not manifest.exists() or manifest.read_text(encoding="utf-8") != text:
        _replace_file(manifest, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def _generate_shard(shard, first: int, generate: Generate, batch_size: int, done) -> list[tuple[int, ...]]:
    responses: list[tuple[int, ...]] = []
    for start in range(0, len(shard), batch_size):
        batch = shard[start : start + batch_size]
        found = generate([list(prompt.ids) for prompt in batch], first + start)
        if len(found) != len(batch):
            raise ValueError(f"generate returned {len(found)} responses to {len(batch)} prompts")
        responses += [tuple(int(token) for token in response) for response in found]
        done(start + len(batch))
    return responses


def _document(prompt: Prompt, response: Sequence[int]) -> Document:
    ids = np.asarray([*prompt.ids, *response], dtype=np.int32)
    return Document(ids, np.arange(len(ids)) >= len(prompt.ids), prompt.name)


def _write_shard(path: Path, shard: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> None:
    tokens = pyarrow.list_(pyarrow.int32())
    table = pyarrow.table(
        {
            "name": pyarrow.array([prompt.name for prompt in shard]),
            "prompt": pyarrow.array([list(prompt.ids) for prompt in shard], type=tokens),
            "response": pyarrow.array([list(response) for response in responses], type=tokens),
        }
    )
    _replace_file(path, lambda temporary: pyarrow.parquet.write_table(table, temporary, write_page_checksum=True))


def _read_shard(path: Path, shard: Sequence[Prompt]) -> list[tuple[int, ...]] | None:
    """The shard's responses; None if it is missing, damaged, or not of these prompts."""
    if not path.exists():
        return None
    try:
        # the whole file at once: a name that ends like a partition must not be read as one
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            rows = file.read().to_pydict()
        right = rows["name"] == [prompt.name for prompt in shard]
        right = right and rows["prompt"] == [list(prompt.ids) for prompt in shard]
        responses = [tuple(response) for response in rows["response"]]
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is damaged and is generated again: %s", path, error)
        return None
    if not right or len(responses) != len(shard):
        logger.warning("%s does not hold the responses to these prompts and is generated again", path)
        return None
    return responses


def _replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Whole or not at all: written beside ``path``, flushed to disk, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
