"""On-policy distillation: the target writes the responses that the draft learns from, cached as Parquet shards.

Stands between prompts and packing. The decoder is handed in, so that data knows nothing of decoding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from dflash.data.atomic import replace_file
from dflash.data.documents import Document
from dflash.data.prompts import Prompt
from dflash.data.regeneration.engine import Generate
from dflash.data.sources import response_document

HASH_KEY = b"content_sha256"
PATIENCE_SECONDS = 1800.0  # a shard of long answers from a large target takes minutes

logger = logging.getLogger(__name__)


def regenerate(
    prompts: Sequence[Prompt],
    *,
    generate: Generate,
    fingerprint: Mapping[str, Any],
    cache_dir: str | Path,
    shard_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
    rank: int = 0,
    world: int = 1,
    patience: float = PATIENCE_SECONDS,
) -> list[Document]:
    """One document per prompt, in order: the prompt's ids unsupervised, the target's response supervised.

    generate: is handed the prompts of a shard. As what it draws depends on a prompt's number only, a continued run
    equals an uninterrupted one.
    fingerprint: plain values, everything else that decides the responses (target, tokenizer, sampling, length, ...).
    Together with the prompts it names the cache folder, so that a changed input never meets an old response.
    Shards of ``shard_size`` prompts are written whole or not at all, with a hash that is verified on reading.
    progress: called with (prompts done, prompts in all).
    rank, world: of processes that run this together over one cache folder; each writes its share of the shards and
    waits for the others'. Where none of those comes for ``patience`` seconds, it writes them itself.
    """
    if shard_size < 1:
        raise ValueError(f"data: shard_size={shard_size} must be at least 1")
    folder = _open_cache(Path(cache_dir), {**fingerprint, "prompts_sha256": prompts_hash(prompts)})
    done, report = 0, progress or (lambda done, total: None)
    report(0, len(prompts))

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report(done, len(prompts))

    shards = _shards(prompts, folder, shard_size)
    responses = {shard: _made(shard, generate, advance) for shard in shards[rank::world]}
    for shard in shards:
        if shard not in responses:
            found = _awaited(shard, patience)
            if found is None:
                patience = 0.0  # they are not there, then
                responses[shard] = _made(shard, generate, advance)
            else:
                responses[shard] = found
                advance(len(shard.prompts))
    return [
        response_document(prompt.ids, response, origin=prompt.name)
        for shard in shards
        for prompt, response in zip(shard.prompts, responses[shard], strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Shard:
    """Consecutive prompts and the file for their responses. first: index of the first of them."""

    first: int
    prompts: Sequence[Prompt]
    path: Path


def _shards(prompts: Sequence[Prompt], folder: Path, size: int) -> list[_Shard]:
    parts = [(first, prompts[first : first + size]) for first in range(0, len(prompts), size)]
    return [_Shard(i, part, folder / f"{i:08d}-{i + len(part) - 1:08d}.parquet") for i, part in parts]


def _made(shard: _Shard, generate: Generate, advance: Callable[[int], None]) -> list[tuple[int, ...]]:
    """The responses, from the file where it has them, else generated and written."""
    found = _read_shard(shard.path, shard.prompts)
    if found is not None:
        advance(len(shard.prompts))
        return found
    made: dict[int, tuple[int, ...]] = {}
    numbers = range(shard.first, shard.first + len(shard.prompts))
    for place, response in generate([list(prompt.ids) for prompt in shard.prompts], numbers):
        made[place] = tuple(int(token) for token in response)
        advance(1)
    if sorted(made) != list(range(len(shard.prompts))):
        raise ValueError(f"generate returned {len(made)} responses to {len(shard.prompts)} prompts")
    responses = [made[place] for place in range(len(shard.prompts))]
    _write_shard(shard.path, shard.prompts, responses)
    return responses


def _awaited(shard: _Shard, patience: float) -> list[tuple[int, ...]] | None:
    """The responses as soon as another process has written them; None if it has not in ``patience`` seconds."""
    waited = time.monotonic()
    while True:
        found = _read_shard(shard.path, shard.prompts)
        if found is not None or time.monotonic() - waited >= patience:
            return found
        time.sleep(min(1.0, patience))


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
        replace_file(manifest, lambda path: path.write_text(text, encoding="utf-8"))
    return folder


def _write_shard(path: Path, shard: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> None:
    content = _shard_content(shard, responses)
    tokens = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema(
        [("name", pyarrow.string()), ("prompt", tokens), ("response", tokens)],
        metadata={HASH_KEY: _content_hash(content)},
    )
    table = pyarrow.Table.from_pydict(content, schema=schema)
    replace_file(path, lambda temporary: pyarrow.parquet.write_table(table, temporary))


def _read_shard(path: Path, shard: Sequence[Prompt]) -> list[tuple[int, ...]] | None:
    """The shard's responses; None if it is missing, damaged, or not of these prompts."""
    if not path.exists():
        return None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
        found = table.to_pydict()
        expected = _shard_content(shard, found["response"])
        intact = (table.schema.metadata or {}).get(HASH_KEY) == _content_hash(found)
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is damaged and is generated again: %s", path, error)
        return None
    if not intact or found != expected or len(found["response"]) != len(shard):
        logger.warning("%s is damaged or answers other prompts, and is generated again", path)
        return None
    return [tuple(response) for response in found["response"]]


def _shard_content(shard: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> dict[str, list]:
    return {
        "name": [prompt.name for prompt in shard],
        "prompt": [list(prompt.ids) for prompt in shard],
        "response": [list(response) for response in responses],
    }


def _content_hash(content: Mapping[str, list]) -> bytes:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest().encode()
