"""The plan of a run as numbers: what a rehearsal found, what is kept beside a step, what the whole run comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dflash.plan.ledger import Rates
from dflash.plan.rehearsal import BACKWARD, DRAFT, OBJECTIVE, OPTIMIZER, TARGET, Rehearsal

GIB = 2**30
WHAT = {
    TARGET: "target, forward",
    DRAFT: "draft, forward",
    OBJECTIVE: "lm_head and loss",
    BACKWARD: "draft, backward",
    OPTIMIZER: "optimizer",
}


@dataclass(frozen=True)
class Plan:
    """Of one device, unless said otherwise.

    memory_bytes: the device's, None where it is not known. rates: None where they are not known. kept_bytes: features
    that the feature source keeps in memory. stored_bytes: those it writes to disk. bucket_bytes: copies of gradients
    for their reduction over devices. num_shards: of the draft's weights, gradients and optimizer state. num_rows: rows
    of a step, over all devices. num_checkpoints: files at once.
    """

    rehearsal: Rehearsal
    memory_bytes: int | None
    rates: Rates | None
    kept_bytes: int
    stored_bytes: int
    bucket_bytes: int
    num_shards: int
    steps: int
    num_rows: int
    length: int
    num_devices: int
    num_checkpoints: int

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at a time; not what an allocator or a library's own buffers add to it."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.memory_bytes is None or self.peak_bytes <= self.memory_bytes

    @property
    def parts(self) -> dict[str, int]:
        """Bytes alive at the peak, by part. Of shards, a layer's weights put together for its pass are not counted."""
        r, phase = self.rehearsal, self.rehearsal.peak_phase
        whole = r.gradient_bytes if phase == OPTIMIZER or r.num_micro_batches > 1 else 0
        draft = r.step[DRAFT]
        sharded = {"draft weights": r.draft_bytes, "optimizer state": r.optimizer_bytes, "gradients": whole}
        others = {
            "target weights": r.target_bytes,
            "features of the batch": r.feature_bytes if phase in (DRAFT, OBJECTIVE, BACKWARD) else 0,
            "draft activations": draft.end_bytes - draft.start_bytes if phase in (OBJECTIVE, BACKWARD) else 0,
        }
        rest = r.peak_bytes - sum(sharded.values()) - sum(others.values())
        parts = others | {name: size // self.num_shards for name, size in sharded.items()}
        parts |= {"features kept": self.kept_bytes, "gradient buckets": self.bucket_bytes}
        return {name: size for name, size in parts.items() if size} | {f"working memory: {WHAT[phase]}": rest}

    @property
    def step_flops(self) -> float:
        return sum(phase.flops for phase in self.rehearsal.step.values())

    @property
    def step_seconds(self) -> float | None:
        if self.rates is None:
            return None
        return sum(phase.seconds for phase in self.rehearsal.step.values())

    @property
    def checkpoint_bytes(self) -> int:
        """Of one file: the draft's weights and the optimizer's state."""
        return self.rehearsal.draft_bytes + self.rehearsal.optimizer_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for plan.json; bytes are bytes."""
        r, seconds = self.rehearsal, self.step_seconds
        return {
            "parameters": {"target": r.num_target_parameters, "draft": r.num_draft_parameters},
            "memory": {
                "peak_bytes": self.peak_bytes,
                "device_bytes": self.memory_bytes,
                "fits": self.fits,
                "peak_phase": WHAT[r.peak_phase],
                "parts": self.parts,
                "peak_bytes_by_phase": {WHAT[name]: phase.peak_bytes for name, phase in r.step.items()},
            },
            "step": {
                "flops": {WHAT[name]: phase.flops for name, phase in r.step.items()},
                "seconds": None if seconds is None else {WHAT[n]: phase.seconds for n, phase in r.step.items()},
                "num_rows": self.num_rows,
                "num_tokens": self.num_rows * self.length,
            },
            "run": {
                "steps": self.steps,
                "num_devices": self.num_devices,
                "num_tokens": self.steps * self.num_rows * self.length,
                "flops": self.steps * self.step_flops * self.num_devices,
                "seconds": None if seconds is None else self.steps * seconds,
            },
            "disk": {
                "checkpoint_bytes": self.checkpoint_bytes,
                "num_checkpoints": self.num_checkpoints,
                "stored_feature_bytes": self.stored_bytes,
            },
            "rates": None if self.rates is None else vars(self.rates),
        }
