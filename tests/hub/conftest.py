"""Every format, and folders written in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from spoil import make_bundle

from dflash.hub.bundle import Bundle
from dflash.hub.convert import write_folder
from dflash.hub.folder import FORMATS, format_named


@pytest.fixture(params=[form.name for form in FORMATS])
def form(request):
    """Every format."""
    return format_named(request.param)


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """(format name, bundle) -> its folder."""

    def make(name: str, bundle: Bundle | None = None) -> Path:
        folder = tmp_path / name
        write_folder(folder, format_named(name), make_bundle() if bundle is None else bundle, card="# card\n")
        return folder

    return make
