"""Objects from nodes of a configuration: the one place that calls ``instantiate``."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import hydra
from hydra.errors import InstantiationException


def build(node: Any, key: str, kind: type | None = None) -> Any:
    """The object that ``node`` describes, an instance of ``kind`` (default: something to call).

    Raises ValueError naming ``key`` where the target is misspelled, a value does not fit its signature, or the
    constructor refuses it.
    """
    try:
        made = hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):
            raise ValueError(str(cause)) from error
        raise ValueError(f"{key}: {cause or str(error).splitlines()[0]}") from error
    if isinstance(made, functools.partial):
        try:
            inspect.signature(made.func).bind_partial(*made.args, **made.keywords)
        except TypeError as error:
            raise ValueError(f"{key}: {error}") from error
    if not (callable(made) if kind is None else isinstance(made, kind)):
        wanted = "something to call" if kind is None else kind.__name__
        raise ValueError(f"{key}: makes a {type(made).__name__}, {wanted} is wanted; check its _target_")
    return made
