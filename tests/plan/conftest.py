"""Composed settings and their plans."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dflash.assemble.plan import make_plan
from dflash.assemble.train import train_parts, untied_module
from dflash.compose import read_settings
from dflash.plan.ledger import Rates

RATES = Rates(flops=1e12, bytes=1e11)


@pytest.fixture(scope="session")
def settings() -> Callable[..., dict]:
    """Checked settings of train.py with these overrides, on a small random target unless they choose another."""

    def compose(*overrides: str) -> dict:
        every = [*([] if any("experiment=" in o for o in overrides) else ["experiment=smoke"]), *overrides]
        return read_settings("train", every)

    return compose


@pytest.fixture(scope="session")
def planned(settings):
    """The plan of settings with these overrides, at ``RATES``."""

    def plan(*overrides: str):
        plain = settings(*overrides)
        return make_plan(plain, train_parts(plain), rates=RATES, module_of=untied_module)

    return plan
