"""Checks of the data and of regeneration in a configuration, for ``check``: plain values, nothing heavy imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path


def data_findings(config: Mapping) -> Iterator[str]:
    """Paths that do not exist, and lanes that the processes cannot share."""
    data, engine = config.get("data") or {}, config.get("engine") or {}
    for name, source in (data.get("sources") or {}).items():
        path = source.get("path")
        if path is not None and source.get("_target_", "").endswith("FileSource") and not Path(path).exists():
            yield f"data.sources.{name}.path={path}: does not exist; give a JSONL or Parquet file, or a folder of them"
    draft = engine.get("draft")
    if draft is not None and not Path(draft).exists():
        yield f"engine.draft={draft}: does not exist; give a run folder, a checkpoint file or a draft folder, or null"
    lanes = data.get("lanes")
    if isinstance(lanes, int) and lanes > 1:
        yield from _lanes(lanes, data, config.get("trainer") or {})


def _lanes(lanes: int, data: Mapping, trainer: Mapping) -> Iterator[str]:
    if not data.get("streaming"):
        yield f"data.lanes={lanes}: only a streamed source is shared out; set data.streaming=true, or data.lanes=1"
    devices, workers = trainer.get("devices", 1), data.get("num_workers")
    if not isinstance(devices, int) or not isinstance(workers, int):
        return  # "auto", or a list: known when the run starts
    processes = max(1, devices) * trainer.get("num_nodes", 1) * max(1, workers)
    if lanes % processes:
        yield (
            f"data.lanes={lanes}: must be a multiple of devices x data.num_workers = {processes}, so that no two "
            f"processes read the same lane; try data.lanes={processes}"
        )
