"""Fixtures of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.viewing import make_run


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real slides; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("WSI_IPS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real slides at {folder}; set WSI_IPS_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def run_to_view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a small finished run; shared, so nothing in it may be changed but reviews."""
    return make_run(tmp_path_factory.mktemp("viewed"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_test_process() -> None:
    """Small tensors are slower with threads, and two processes with threads each fight for the cores."""
    torch.set_num_threads(1)
