"""`wsi-ips export qupath` and `export dicom` from a finished run."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from typer.testing import CliRunner

from wsi_ips.cli import app
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.tiles.store import read_index

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")


def run(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*map(str, arguments)])
    return found.exit_code, " ".join(found.output.split())


@pytest.fixture(scope="module")
def a_run(run_to_view, tmp_path_factory, real_data) -> Path:
    """Recipe of a copy of a run, with a real DICOM slide predicted too; its scale is said to be finer than it is."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(run_to_view, folder / "out")
    recipe = yaml.safe_load((run_to_view.parent / "recipe.yaml").read_text())
    cohort = run_to_view.parent / "cohort"
    table = pd.read_csv(cohort / "manifest.csv", dtype=str, keep_default_na=False)
    for column in ("path", "annotation"):
        table[column] = [str(cohort / value) if value else "" for value in table[column]]
    slide = real_data / "slides" / "w2d_jpeg.dcm"
    extra = pd.DataFrame([{"slide_id": "node", "path": str(slide), "mpp": "2.0"}])
    pd.concat([table, extra]).fillna("").to_csv(folder / "manifest.csv", index=False)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"manifest": "manifest.csv"}))
    _, text = run("predict", folder / "recipe.yaml", "node")
    assert (folder / "out" / "scores.zarr" / "node").exists(), text
    return folder / "recipe.yaml"


def predicted_synthetic(recipe: Path) -> list[str]:
    return sorted(p.name for p in (recipe.parent / "out" / "scores.zarr").iterdir() if p.name.startswith("slide_"))


def test_a_dicom_slide_gets_both_maps_and_other_slides_are_refused(a_run, tmp_path):
    other = predicted_synthetic(a_run)[0]
    code, text = run("export", "dicom", a_run, "node", other, "--output", tmp_path / "d")
    assert code == 3
    assert f"{other}: slide {other}.svs: no DICOM file" in text
    assert "1 slides written" in text
    assert "the slide's header lacks PatientName" in text
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["node"]
    assert sorted(p.name for p in (tmp_path / "d" / "node").iterdir()) == ["attention_0.dcm", "probability_0.dcm"]
    index = read_index(a_run.parent / "out" / "tiles.zarr", "node")
    scores = read_scores(a_run.parent / "out" / "scores.zarr", "node")
    found = pydicom.dcmread(tmp_path / "d" / "node" / "probability_0.dcm")
    values = np.frombuffer(found.FloatPixelData, np.float32).reshape(found.Rows, found.Columns)
    column = np.rint((index.x - index.grid.x) / index.stride_px0.x).astype(int)
    row = np.rint((index.y - index.grid.y) / index.stride_px0.y).astype(int)
    np.testing.assert_array_equal(values[row, column], scores.positive_probability)
    assert (values == -1).sum() == values.size - len(index)
    rank = pydicom.dcmread(tmp_path / "d" / "node" / "attention_0.dcm")
    code_of = rank.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0].QuantityDefinitionSequence[0]
    assert code_of.ConceptCodeSequence[0].CodingSchemeDesignator == "99WSIIPS"


def test_the_project_holds_the_predicted_slides_with_lesions_in_its_coordinates(a_run, tmp_path):
    code, text = run("export", "qupath", a_run, "--output", tmp_path / "q")
    assert code == 0, text
    stored = json.loads((tmp_path / "q" / "project.qpproj").read_text())
    slides = [entry["metadata"]["wsi-ips slide"] for entry in stored["images"]]
    assert sorted(slides) == sorted([*predicted_synthetic(a_run), "node"])
    assert stored["uri"] == (tmp_path / "q" / "project.qpproj").as_uri()
    assert all(
        set(entry["metadata"]) == {"wsi-ips slide", "tumor probability", "lesions", "model"}
        for entry in stored["images"]
    )
    for name in slides:
        objects = json.loads(gzip.decompress((tmp_path / "q" / "wsi-ips" / f"{name}.geojson.gz").read_bytes()))
        index = read_index(a_run.parent / "out" / "tiles.zarr", name)
        tiles = [f for f in objects["features"] if f["properties"]["objectType"] == "tile"]
        corners = {tuple(f["geometry"]["coordinates"][0][0]) for f in tiles}
        assert corners <= set(
            zip((index.x - index.bounds.x).tolist(), (index.y - index.bounds.y).tolist(), strict=True)
        )
        assert tiles
    assert str(tmp_path / "q" / "wsi-ips") in (tmp_path / "q" / "scripts" / "load_wsi_ips.groovy").read_text()


def test_a_folder_with_something_in_it_is_never_replaced(a_run, tmp_path):
    (tmp_path / "data.qpdata").write_text("drawn by a person")
    code, text = run("export", "qupath", a_run, "--output", tmp_path)
    assert code == 2
    assert "may hold what people have drawn" in text
    assert [p.name for p in tmp_path.iterdir()] == ["data.qpdata"]


def test_what_cannot_be_exported_says_why(a_run, tmp_path):
    for arguments, code, message in (
        (["export", "dicom", a_run], 2, "Missing option '--output'"),
        (["export", "dicom", a_run, "nobody", "--output", tmp_path / "d"], 2, "no slide `nobody`"),
        (["export", "dicom", a_run, "node", "gone", "--output", tmp_path / "d"], 3, "slide gone: not predicted"),
        (["export", "qupath", a_run, "gone", "--output", tmp_path / "q"], 2, "none of the slides is predicted"),
        (["export", "qupath", a_run.parent, "--output", tmp_path / "q"], 2, "no finished run"),
    ):
        found, text = run(*arguments)
        assert (found, message in text) == (code, True), text


def test_a_run_folder_does_as_well_as_its_recipe(run_to_view, tmp_path):
    assert run("export", "qupath", run_to_view, "--output", tmp_path / "q")[0] == 0
    assert (tmp_path / "q" / "project.qpproj").exists()
