"""Plain images of any kind go the whole way in units of pixels, without a scale, a tissue mask or a column for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import wsi_ips
from wsi_ips.config import load_recipe
from wsi_ips.errors import CheckpointError
from wsi_ips.pipeline import Run, run_pipeline, run_stage
from wsi_ips.pipeline.check_slides import check_cohort, find_target
from wsi_ips.pipeline.run_viewer import RunCollection
from wsi_ips.tiles.store import read_index

KINDS = ("L.png", "RGB.png", "RGB.jpg", "L.tif", "RGB.tif", "L.jpg")
RECIPE = """
output: out
manifest: manifest.csv
slides: {unit: pixels}
tissue: {method: all}
tiles: {mpp: 1, patch_px: 32}
labels: {classes: [dark, bright]}
model: {encoder: resnet18-1, memory_size: 3, heads: 2, key_width: 8}
training: {epochs: 2, batch_slides: 3, augment: false, start: none, grid_shift: true}
compute: {workers: 0, device: cpu}
"""


def write_images(folder: Path) -> None:
    """Two images of each kind: of noise, and with a bright square; not square, not a multiple of the tile."""
    rng, rows = np.random.default_rng(0), []
    for number, kind in enumerate((*KINDS, *KINDS)):
        mode, _, suffix = kind.partition(".")
        pixels = rng.integers(0, 60, (170, 230, 3), np.uint8)
        if number % 2:
            pixels[40:80, 100:140] = 250
        name = f"image_{number}"
        Image.fromarray(pixels).convert(mode).save(folder / f"{name}.{suffix}", dpi=(300, 300))
        split = "train" if number < 8 else "test"
        rows.append(
            {"slide_id": name, "path": f"{name}.{suffix}", "label": ("dark", "bright")[number % 2]} | {"split": split}
        )
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    assert run_pipeline(load_recipe(folder / "recipe.yaml")).failed == 0
    return folder


def test_every_tile_of_the_image_is_one_of_its_pixels(folder):
    for number in range(12):
        index = read_index(folder / "out" / "tiles.zarr", f"image_{number}")
        assert len(index) == (170 // 32) * (230 // 32)
        assert index.mpp == (1, 1)
        assert index.mpp_source == "pixels"
        assert index.tissue_method == "all of the image"
        assert index.plan.read_size == (32, 32)
        assert (index.tissue_fraction == 1).all()
        assert index.x.max() == 192
        assert index.y.max() == 128
    states = pd.read_csv(folder / "out" / "slides.csv", keep_default_na=False)
    assert set(states["state"]) == {"ok"}
    assert set(states["remarks"]) == {""}


def test_maps_handoff_and_viewer_work(folder):
    found = sorted(path.name for path in (folder / "out" / "heatmaps").rglob("*.png"))
    assert any(name.startswith("image_9") for name in found), found
    package = {path.suffix for path in (folder / "out" / "handoff" / "image_9").iterdir()}
    assert {".tif", ".xml", ".png", ".csv"} <= package
    with Run.open(load_recipe(folder / "recipe.yaml")) as run:
        viewer = RunCollection(run)
        assert len(viewer.entries()) == 12
        assert len(viewer.detail("image_9").layers) > 1
        shown = np.asarray(Image.open(folder / "image_9.tif").convert("RGB"))[:32, :32]
        np.testing.assert_array_equal(viewer.patch("image_9", 0), shown)


def test_check_counts_the_tiles_and_a_folder_of_images_is_a_cohort(folder, tmp_path):
    report = check_cohort(find_target(str(folder / "recipe.yaml")))
    assert report.unusable == 0
    assert report.tiles > 0
    one = find_target(str(folder / "image_0.png"))
    assert [record.slide_id for record in one.records] == ["image_0"]
    for name in ("b.png", "a.jpg"):
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / name)
    assert sorted(r.slide_id for r in find_target(str(tmp_path)).records) == ["a", "b"]
    (tmp_path / "slide.svs").write_bytes(b"beside slides, images are previews")
    assert [r.slide_id for r in find_target(str(tmp_path)).records] == ["slide"]


def test_the_model_alone_predicts_an_image_and_refuses_units_of_micrometres(folder):
    model = wsi_ips.load_model(folder / "out", device="cpu")
    assert model.slides.unit == "pixels"
    prediction = wsi_ips.predict_slide(model, folder / "image_9.tif")
    stored = pd.read_csv(folder / "out" / "predictions.csv", index_col="slide_id").loc["image_9"]
    assert prediction.probability["bright"] == pytest.approx(stored["probability_bright"], abs=1e-3)
    changes = {"slides.unit": "um", "predict.checkpoint": str(folder / "out" / "model")}
    recipe = load_recipe(folder / "recipe.yaml", changes | {"output": str(folder / "other")})
    frame = pd.read_csv(folder / "manifest.csv").assign(mpp=1.0)
    frame.to_csv(folder / "scaled.csv", index=False)
    with pytest.raises(CheckpointError, match=r"`slides\.unit` pixels \(the recipe: um\)"):
        run_stage(recipe.model_copy(update={"manifest": folder / "scaled.csv"}), "predict")
