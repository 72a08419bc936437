"""Features written to disk once, before training, and read from there ever after: conf ``features=stored``.

For data that is seen many times and whose features do not fit in memory, and for a target that need not stay busy
while drafts are compared. Shards of safetensors stand in a folder named by everything that decides their contents; a
manifest knows each shard's rows, size and checksum. A shard is written whole or not at all, so that a killed run goes
on behind its last shard; one that is damaged is written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from dflash.target.features import join, row_key, split_rows
from dflash.target.target import Target
from dflash.types import TargetFeatures, TokenBatch

GIB = 2**30
TAPS, LAST = "taps", "last"

logger = logging.getLogger(__name__)


class StoredFeatures:
    """Features of rows on disk below ``folder``, of at most ``max_gib`` GiB; ``rows_per_shard`` rows to a file.

    A row is computed by itself, in fp32 to the bit what ``MemoryFeatures`` computes. Under several ranks each writes
    what is missing, whole files of equal contents.
    """

    def __init__(self, *, folder: str | Path, max_gib: float, rows_per_shard: int = 64):
        if max_gib <= 0:
            raise ValueError(f"features.max_gib={max_gib}: must be above 0; features=online stores nothing")
        if rows_per_shard < 1:
            raise ValueError(f"features.rows_per_shard={rows_per_shard}: must be at least 1")
        self.folder = Path(folder)
        self.max_gib = max_gib
        self.rows_per_shard = rows_per_shard
        self._places: dict[str, tuple[Path, int]] = {}  # digest of a row -> shard and index in it
        self._open: dict[Path, Any] = {}

    def __call__(self, target: Target, batch: TokenBatch, taps: tuple[int, ...], *, with_last: bool) -> TargetFeatures:
        rows = [self._read(row, with_last) for row in split_rows(batch)]
        return join(rows).to(target.device)

    def prepare(
        self,
        target: Target,
        rows: Callable[[], Sequence[TokenBatch]],
        taps: tuple[int, ...],
        *,
        with_last: bool,
        say: Callable[[str], None],
        progress: Callable[[int, int], None],
    ) -> None:
        """Write what is not there yet.

        Raises ValueError, with the size, for more than ``max_gib`` or than the disk has room for.
        """
        found = rows()
        digests = [_digest(row) for row in found]
        identity = {
            "target": target.fingerprint(),
            "dtype": str(target.dtype),
            "taps": list(taps),
            "with_last": with_last,
            "length": found[0].ids_BS.shape[1],
            "rows_per_shard": self.rows_per_shard,
            "rows": hashlib.sha256("".join(digests).encode()).hexdigest(),
        }
        place = self.folder / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        manifest = _read_manifest(place / "manifest.json")
        shards = [slice(at, at + self.rows_per_shard) for at in range(0, len(found), self.rows_per_shard)]
        names = {f"{shard.start:08d}.safetensors": shard for shard in shards}
        missing = [name for name in names if not _is_intact(place / name, manifest.get(name))]
        self._confirm(target, found, taps, with_last, sum(len(found[names[name]]) for name in missing), place, say)
        progress(len(found) - sum(len(found[names[name]]) for name in missing), len(found))
        for name in missing:
            part = (target.features(row.to(target.device), taps, with_last=with_last) for row in found[names[name]])
            features = join([row.to("cpu") for row in part])
            manifest[name] = _write_shard(place / name, features, digests[names[name]])
            _write_whole(place / "manifest.json", json.dumps({"identity": identity, "shards": manifest}, indent=1))
            progress(min(names[name].stop, len(found)), len(found))
        self._open.clear()
        self._places = {
            digest: (place / name, i) for name, shard in names.items() for i, digest in enumerate(digests[shard])
        }

    def kept_bytes(self, row_bytes: int, num_rows: int) -> int:
        return 0  # pages of the files that the system keeps are free for the taking

    def stored_bytes(self, row_bytes: int, num_rows: int) -> int:
        return row_bytes * num_rows

    def _confirm(self, target, rows, taps, with_last, num_missing: int, place: Path, say) -> None:
        """Say what will be written, or refuse it: the size is known before anything is computed."""
        states = len(taps) + with_last
        row_bytes = rows[0].ids_BS.shape[1] * states * target.dims.hidden_size * target.dtype.itemsize
        whole, missing = row_bytes * len(rows) / GIB, row_bytes * num_missing / GIB
        if whole > self.max_gib:
            raise ValueError(
                f"features.max_gib={self.max_gib}: the features of {len(rows):,} rows take {whole:.3g} GiB on disk; "
                f"raise it to {whole * 1.01:.3g}, take fewer rows or taps, or choose features=online"
            )
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free / GIB
        if missing > free:
            raise ValueError(
                f"features.folder={self.folder}: {missing:.3g} GiB of features are to be written and {free:.3g} "
                "are free there; choose another folder, or features=online"
            )
        say(
            f"stored features: {len(rows):,} rows, {whole:.3g} GiB in {place} ({free:.3g} GiB free), "
            f"{num_missing:,} rows to be computed"
        )

    def _read(self, row: TokenBatch, with_last: bool) -> TargetFeatures:
        digest = _digest(row)
        if digest not in self._places:
            raise ValueError(
                "features=stored: a row of the batch was not among those stored; features are stored for data that is "
                "held in memory and does not change, so set data.streaming=false or choose features=online"
            )
        path, i = self._places[digest]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        file = self._open[path]
        last = file.get_slice(LAST)[i : i + 1] if with_last else None
        return TargetFeatures(file.get_slice(TAPS)[i : i + 1], last)


def _digest(row: TokenBatch) -> str:
    return hashlib.sha256(row_key(row)).hexdigest()


def _read_manifest(path: Path) -> dict[str, dict]:
    """The shards of a manifest by name, none where there is no readable one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_intact(path: Path, entry: dict | None) -> bool:
    """Whether the shard is there and is what was written."""
    if entry is None or not path.is_file():
        return False
    if path.stat().st_size == entry["bytes"] and _checksum(path) == entry["sha256"]:
        return True
    logger.warning("%s is damaged and is written anew", path)
    return False


def _write_shard(path: Path, features: TargetFeatures, digests: Sequence[str]) -> dict:
    """Write one shard; its entry of the manifest."""
    tensors = {TAPS: features.taps_BSTH} | ({} if features.last_BSH is None else {LAST: features.last_BSH})
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary)
        entry = {"bytes": temporary.stat().st_size, "sha256": _checksum(temporary), "rows": list(digests)}
        _flush_and_rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return entry


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _flush_and_rename(temporary, path)


def _flush_and_rename(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
