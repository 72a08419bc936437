"""From a composed configuration to plain values, or to one error with every finding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dflash.check import find
from dflash.check_bounds import NULLABLE
from dflash.compose.build import build
from dflash.compose.keys import is_group, key_of
from dflash.hub.folder import examine as examine_folder
from dflash.hub.folder import is_draft_folder


def check(config: DictConfig, *, config_name: str | None = None, overrides: Sequence[str] | None = None) -> dict:
    """The configuration as plain resolved values. Raises ValueError that lists every finding.

    config_name, overrides: how it was composed; by default as the running job was.
    """
    name = HydraConfig.get().job.config_name if config_name is None else config_name
    given = list(HydraConfig.get().overrides.task) if overrides is None else list(overrides)
    plain, findings = examine(config, name, given)
    raise_findings(findings)
    return plain


def examine(config: DictConfig, config_name: str, overrides: Sequence[str]) -> tuple[dict, list[str]]:
    """(plain values, findings): missing and mistyped values, and what ``check.find`` finds in the others."""
    config = config.copy()
    findings = _adopt_target(config)
    findings += [f"{key}: has no value; give {key}=..." for key in sorted(OmegaConf.missing_keys(config))]
    findings += _mistyped(config, config_name, overrides)
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        return {}, [*findings, first_line(error)]
    return plain, findings + find(plain, build=build)


def raise_findings(findings: Iterable[str]) -> None:
    """Raises ValueError listing them, if there are any."""
    findings = list(dict.fromkeys(findings))
    if findings:
        many = f"{len(findings)} things are" if len(findings) > 1 else "One thing is"
        raise ValueError(f"{many} wrong with the configuration:\n" + "\n".join(f"  * {line}" for line in findings))


def _adopt_target(config: DictConfig) -> list[str]:
    """evaluate.py: the target of the checkpoint's run, where none was chosen; a draft folder knows the mask token."""
    if "checkpoint" not in config:
        return []
    path = resolve_checkpoint(config.checkpoint, config.paths.outputs)
    if is_draft_folder(path):
        return _adopt_mask_token(config, path)
    if config.target is not None:
        return []
    if not path.exists():
        if config.checkpoint != "latest":
            return []  # found later
        return [f"checkpoint=latest: no run of train.py at {path}; run train.py first, or give checkpoint=PATH"]
    saved = [folder / "config.yaml" for folder in (path, path.parent, path.parent.parent)]
    saved = [file for file in saved if file.is_file()]
    if not saved:
        return [
            f"checkpoint={config.checkpoint}: no config.yaml beside it; say which target, as in target=tiny_gpt_oss"
        ]
    loaded = OmegaConf.load(saved[0])
    with open_dict(config):
        config.target = OmegaConf.merge(loaded.target, {"device": config.device})
        config.target_facts = loaded.target_facts
    return []


def _adopt_mask_token(config: DictConfig, folder: Path) -> list[str]:
    if config.target is None:
        return [f"checkpoint={config.checkpoint}: a draft folder names no target; say which, as in target=tiny_gpt_oss"]
    with suppress(ValueError):  # a folder that cannot be read is found later
        if OmegaConf.select(config, "target.mask_token_id", default=0) is None:
            config.target.mask_token_id = examine_folder(folder).shape.mask_token_id
    return []


def resolve_checkpoint(checkpoint: str, outputs: str) -> Path:
    """The path that ``checkpoint`` names; latest is the run that ``outputs``/latest points to."""
    return Path(outputs) / "latest" if checkpoint == "latest" else Path(checkpoint)


def _mistyped(config: DictConfig, config_name: str, overrides: Sequence[str]) -> list[str]:
    """Overridden values of another type than the option's own; ``config`` gets the option's instead."""
    values = [override for override in overrides if not is_group(override)]
    if not values:
        return []
    reference = hydra.compose(config_name, overrides=[override for override in overrides if is_group(override)])
    findings = []
    for key in map(key_of, values):
        own, given = OmegaConf.select(reference, key), OmegaConf.select(config, key)
        if own is not None and not _fits(given, own, key):
            shown = OmegaConf.to_container(own) if isinstance(own, (DictConfig, ListConfig)) else own
            findings.append(f"{key}={given}: must be {kind_of(own)}, as in {key}={shown}".replace("=None:", "=null:"))
            OmegaConf.update(config, key, own)
    return findings


def _fits(given: Any, own: Any, key: str) -> bool:
    if given is None:
        return isinstance(own, DictConfig) or key.rpartition(".")[2] in NULLABLE
    if isinstance(own, float):
        return isinstance(given, (int, float)) and not isinstance(given, bool)
    return type(given) is type(own) if not isinstance(own, str) else True


def kind_of(value: Any) -> str:
    kinds = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        ListConfig: "a list",
        DictConfig: "a mapping",
    }
    return kinds.get(type(value), "text")


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
