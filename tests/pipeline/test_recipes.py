"""The recipes of `pipelines/` as they stand, on folders of the real form."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.camelyon import camelyon16_folder
from wsi_ips.cli import app
from wsi_ips.config import load_recipe
from wsi_ips.manifest.manifest_csv import read_manifest

PIPELINES = Path(__file__).parents[2] / "pipelines"
CHEAP = (
    "model.pretrained=false",
    "training.epochs=2",
    "training.start_steps=1",
    "model.encoder=resnet18-1",
    "tiles.mpp=2.0",
    "tiles.patch_px=64",
)
"""A test has no network and seconds instead of days; what the recipe says of the data stays as it is."""


def settings(**changes: object) -> list[str]:
    return [part for text in (*CHEAP, *(f"{k}={v}" for k, v in changes.items())) for part in ("--set", text)]


@pytest.fixture(scope="module")
def camelyon16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of camelyon16.yaml."""
    folder = tmp_path_factory.mktemp("camelyon16")
    data = camelyon16_folder(folder / "CAMELYON16", folder / "work")
    arguments = ["run", str(PIPELINES / "camelyon16.yaml"), *settings(manifest=data, output=folder / "out")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    return folder / "out"


def test_camelyon16_from_its_folder_by_one_command(camelyon16):
    rows = pd.read_csv(camelyon16 / "predictions.csv").set_index("slide_id")
    assert set(rows.index[rows["split"] == "test"]) == {f"test_{n:03d}" for n in (1, 2, 3, 4)}  # no test_049
    assert rows.loc["test_001", "label"] == "normal"
    assert rows.loc["test_004", "label"] == "tumor"
    assert (rows["split"] == "val").sum() >= 1
    assert (camelyon16 / "report" / "index.html").exists()
    assert (camelyon16 / "heatmaps" / "test_003_probability.png").exists()


def test_camelyon16_keeps_the_official_split_and_its_hygiene(camelyon16):
    found = {r.slide_id: r for r in read_manifest(camelyon16 / "manifest.csv").records}
    assert {r.split for name, r in found.items() if name.startswith("test")} == {"test"}
    assert {r.split for name, r in found.items() if not name.startswith("test")} == {"train"}
    assert found["tumor_001"].annotation is not None
    assert found["tumor_010"].annotation is None  # not all of its lesions are outlined
    facts = json.loads((camelyon16 / "run.json").read_text())
    assert facts["recipe"]["manifest"] == str(camelyon16 / "manifest.csv")


def test_camelyon16_is_measured_by_the_challenge_s_rules(camelyon16):
    result = CliRunner().invoke(
        app,
        [
            "evaluate",
            str(PIPELINES / "camelyon16.yaml"),
            *settings(manifest=camelyon16.parent / "CAMELYON16", output=camelyon16),
        ],
        env={"COLUMNS": "140"},
    )
    assert result.exit_code == 0, result.output
    figures = json.loads((camelyon16 / "evaluation.json").read_text())
    assert figures["localisation"]["lesions_by_peaks"]["slides"] == 4
    assert figures["localisation"]["tumour_slides"] == 2


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_one(path):
    recipe = load_recipe(path)
    assert recipe.name
    assert not recipe.output.exists() or recipe.output.is_dir()
