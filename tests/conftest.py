"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real slides; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("WSI_IPS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides at {folder}; set WSI_IPS_DATA to run this test")
    return folder
