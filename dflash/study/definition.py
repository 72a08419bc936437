"""What a study is: a question and its arms, read from ``experiments/<study>/study.yaml``.

An arm is a list of overrides of train.py over the base that all arms share. ``experiments/common.yaml`` holds the base
that all studies share, and the overrides of the small form, which runs in seconds on a random target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

EXPERIMENTS = Path(__file__).resolve().parent.parent.parent / "experiments"
NAME = re.compile(r"[a-z0-9][a-z0-9_.]*")
NEEDED = ("title", "question", "published", "minutes", "baseline", "arms")
KEYS = (*NEEDED, "seeds", "base", "prepare")
ARM_KEYS = ("overrides", "against", "block_decoded", "small")


@dataclass(frozen=True)
class Arm:
    """One choice that a study compares.

    overrides: all of them, in order, the base's first. against: the arm it is compared with; None for one that others
    are compared with. block_decoded: tokens of a block in decoding; None: as trained.
    """

    name: str
    overrides: tuple[str, ...]
    against: str | None
    block_decoded: int | None = None


@dataclass(frozen=True)
class Preparation:
    """Something that must exist before arms can be composed: the path, and the overrides of train.py that make it."""

    makes: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A question, the arms that answer it, and what was published about it. minutes: expected, on two cores."""

    name: str
    folder: Path
    title: str
    question: str
    published: str
    minutes: float
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    prepare: tuple[Preparation, ...] = ()

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)


def study_names(root: Path = EXPERIMENTS) -> list[str]:
    """All studies there are, by name."""
    return sorted(path.parent.name for path in root.glob("*/study.yaml"))


def read_study(name: str, *, root: Path = EXPERIMENTS, small: bool = False, extra: Sequence[str] = ()) -> Study:
    """The study of this name. ``extra``: overrides of every arm, behind all others.

    Raises ValueError for a study that is not there or whose file is not one, with every finding.
    """
    path = root / name / "study.yaml"
    if not path.is_file():
        raise ValueError(f"study {name!r}: there is no {path}; choose one of {', '.join(study_names(root))}")
    values, common = _read(path), _read(root / "common.yaml")
    findings = _findings(values)
    if findings:
        raise ValueError(f"{path} is not a study:\n" + "\n".join(f"  * {finding}" for finding in findings))
    before = (*common["base"], *values.get("base", ()))
    tiny = tuple(common["small"] if small else ())
    return Study(
        name=name,
        folder=path.parent,
        **{key: values[key] for key in ("title", "question", "published", "minutes")},
        seeds=tuple(values.get("seeds", (0, 1, 2))),
        arms=tuple(_arm(key, _spec(arm), values["baseline"], before, tiny, extra) for key, arm in _arms(values)),
        prepare=tuple(Preparation(p["makes"], tuple(p["overrides"])) for p in values.get("prepare", ()) if not small),
    )


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error


def _arms(values: Mapping) -> list[tuple[str, Any]]:
    return [(str(name), arm) for name, arm in values["arms"].items()]


def _spec(arm: Any) -> dict:
    """An arm is a list of overrides, or a mapping that has more to say."""
    return {"overrides": arm} if isinstance(arm, list) else dict(arm)


def _arm(name: str, spec: Mapping, baseline: str, before: Sequence, small: Sequence, extra: Sequence) -> Arm:
    """Overrides in order: the bases', the arm's own, the small form's but for what the arm chose itself, ``extra``."""
    own = spec.get("small", spec["overrides"]) if small else spec["overrides"]
    chosen = {override.partition("=")[0] for override in own}
    against = spec.get("against", baseline)
    return Arm(
        name=name,
        overrides=(
            *before,
            *own,
            *(o for o in small if not chosen & {o.partition("=")[0], o.partition(".")[0]}),
            *extra,
        ),
        against=None if against == name else against,
        block_decoded=spec.get("block_decoded"),
    )


def _findings(values: Any) -> list[str]:
    if not isinstance(values, Mapping):
        return [f"it must be a mapping with the keys {', '.join(NEEDED)}"]
    findings = [f"{key}: is missing" for key in NEEDED if key not in values]
    findings += [f"{key}: no such key; choose among {', '.join(KEYS)}" for key in values if key not in KEYS]
    for key in ("base", "seeds"):
        if not isinstance(values.get(key, []), list):
            findings.append(f"{key}={values[key]}: must be a list")
    if "seeds" in values and not values["seeds"]:
        findings.append("seeds=[]: must name at least one, as in seeds: [0, 1, 2]")
    if not isinstance(values.get("arms"), Mapping) or not values["arms"]:
        return [*findings, "arms: must map names to lists of overrides, as in arms: {deep: [draft=depth8]}"]
    names = [name for name, _ in _arms(values)]
    if "baseline" in values and values["baseline"] not in names:
        findings.append(f"baseline={values['baseline']}: is no arm; choose one of {', '.join(names)}")
    return findings + [finding for name, arm in _arms(values) for finding in _arm_findings(name, arm, names)]


def _arm_findings(name: str, arm: Any, names: list[str]) -> list[str]:
    if not NAME.fullmatch(name):
        return [f"arms.{name}: use small letters, digits, dots and underscores for its name"]
    if not isinstance(arm, (list, Mapping)) or not isinstance(_spec(arm).get("overrides"), list):
        return [f"arms.{name}: must be a list of overrides, or a mapping with overrides: [...]"]
    spec = _spec(arm)
    unknown = [key for key in spec if key not in ARM_KEYS]
    findings = [f"arms.{name}.{key}: no such key; choose among {', '.join(ARM_KEYS)}" for key in unknown]
    if "against" in spec and spec["against"] not in names:
        findings.append(f"arms.{name}.against={spec['against']}: is no arm; choose one of {', '.join(names)}")
    block = spec.get("block_decoded")
    if block is not None and (not isinstance(block, int) or block < 1):
        findings.append(f"arms.{name}.block_decoded={block}: must be a whole number of at least 1, as in 8")
    return findings
