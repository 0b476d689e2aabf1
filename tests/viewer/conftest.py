"""What the tests of the server share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for OpenSeadragon, which the server only hands out."""
    path = tmp_path_factory.mktemp("library") / "openseadragon.min.js"
    path.write_text("// a library", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run_folder(run_to_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, for its reviews."""
    folder = tmp_path_factory.mktemp("server") / "out"
    shutil.copytree(run_to_view, folder)
    return folder
