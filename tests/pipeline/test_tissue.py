"""Tissue in a run: masks that go out to QuPath and come back, overrides, recall, the sheet, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import yaml
from typer.testing import CliRunner

from wsi_ips.annotations import geojson_of, read_geojson, write_asap
from wsi_ips.cli import app
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.geometry import Point, Size
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.slides.synthetic_slide import write_synthetic_slide
from wsi_ips.slides.synthetic_textures import Stain
from wsi_ips.slides.synthetic_tissue import PlannedBlob, SyntheticSlide
from wsi_ips.tiles.index import TileIndex

STAIN = Stain(1.0, 1.0, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), (240, 239, 241))


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two slides, one with pen, annotated tumour and a mask to come."""
    rows = []
    for name, pen in (("plain", None), ("inked", (20, 110, 60))):
        blobs = (PlannedBlob("tumour", 0.3),)
        plan = SyntheticSlide(name, 4, Size(6144, 4096), 0.5, 1.0, blobs, STAIN, pen=pen)
        lesions = write_synthetic_slide(plan, tmp_path / f"{name}.svs")
        write_asap(tmp_path / f"{name}.xml", lesions)
        rows.append({"slide_id": name, "path": f"{name}.svs", "annotation": f"{name}.xml", "tissue_mask": ""})
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    recipe = {"name": "t", "output": "out", "manifest": "manifest.csv", "tiles": {"mpp": 1.0, "patch_px": 64}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


def recipe_of(folder: Path, **overrides: object) -> Recipe:
    return load_recipe(folder / "recipe.yaml", overrides)


def set_cell(folder: Path, slide_id: str, column: str, value: object) -> None:
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    if column not in table:
        table[column] = ""
    table.loc[table["slide_id"] == slide_id, column] = str(value)
    table.to_csv(folder / "manifest.csv", index=False)


def boxes_of(index: TileIndex) -> np.ndarray:
    x, y, width, height = index.boxes_px0.T
    return shapely.box(x, y, x + width, y + height)


def test_a_mask_goes_out_and_comes_back_and_only_its_slide_is_tiled_again(cohort):
    run = run_stage(recipe_of(cohort), "tile")
    before = {r.slide_id: run.slides.index(r) for r in run.slides.records}
    set_cell(cohort, "plain", "tissue_mask", "out/tissue/plain.geojson")
    again = run_stage(recipe_of(cohort), "tile")
    after = {r.slide_id: again.slides.index(r) for r in again.slides.records}
    assert again.states["plain"].tissue_method == "drawn"
    assert after["plain"].tissue_method == "drawn: plain.geojson"
    assert after["inked"].fingerprint == before["inked"].fingerprint
    both = set(zip(before["plain"].x, before["plain"].y, strict=True)) & set(
        zip(after["plain"].x, after["plain"].y, strict=True)
    )
    assert len(both) >= 0.97 * max(len(before["plain"]), len(after["plain"]))
    np.testing.assert_allclose(after["plain"].tissue_fraction.mean(), before["plain"].tissue_fraction.mean(), atol=0.02)


def test_an_edited_mask_is_used_as_it_is_and_a_bad_one_fails_its_slide(cohort):
    (cohort / "mine.geojson").write_bytes(
        geojson_of([("Tissue", shapely.box(512, 512, 1024, 768))], bounds_origin=Point(0, 0), seed="x")
    )
    set_cell(cohort, "plain", "tissue_mask", "mine.geojson")
    set_cell(cohort, "inked", "tissue_mask", "nobody.geojson")
    accepted = {"tiles.accept_lost_tumour": True}  # the mask leaves the tumour out
    run = run_stage(recipe_of(cohort, **accepted), "tile")
    boxes = run.slides.index(run.slides.records[0]).boxes_px0
    assert boxes.tolist() == [[x, y, 128, 128] for y in (512, 640) for x in (512, 640, 768, 896)]
    assert run.states["inked"].state == "failed"
    assert "tissue_mask" in run.states["inked"].reason
    (cohort / "mine.geojson").write_bytes(
        geojson_of([("Tissue", shapely.box(512, 512, 768, 768))], bounds_origin=Point(0, 0), seed="x")
    )
    assert len(run_stage(recipe_of(cohort, **accepted), "tile").slides.index(run.slides.records[0])) == 4


def test_the_manifest_overrides_the_recipe_for_one_slide(cohort):
    set_cell(cohort, "plain", "tissue_method", "otsu")
    set_cell(cohort, "plain", "tissue_min_saturation", "0.99")
    run = run_stage(recipe_of(cohort, **{"tiles.accept_lost_tumour": True}), "tile")
    assert run.states["plain"].state == "empty"
    assert run.states["plain"].remarks.startswith("1 of 1 annotated lesions lost")
    assert run.states["inked"].state == "ok"
    recall = pd.read_csv(run.folder.tissue_recall, keep_default_na=False).set_index("slide_id")
    assert recall.loc["plain", "lost_to"] == "segmentation"
    assert recall.loc["inked", "in_tissue"] > 0.98
    page = (run.folder.tissue / "index.html").read_text(encoding="utf-8")
    assert page.index('id="plain"') < page.index('id="inked"')


def test_tiles_with_pen_are_left_out_unless_the_recipe_keeps_them(cohort):
    strict = run_stage(recipe_of(cohort), "tile")
    inked = strict.slides.records[1]
    assert not (strict.slides.index(inked).flags & 1).any()
    count = len(strict.slides.index(inked))
    facts = json.loads((strict.folder.tissue / "inked.json").read_text(encoding="utf-8"))
    kept = run_stage(recipe_of(cohort, **{"tiles.exclude_flags": []}), "tile")
    flags = kept.slides.index(inked).flags
    assert kept.states["inked"].not_analysed.share_flagged == 0 < strict.states["inked"].not_analysed.share_flagged
    assert facts["left_out"] == (flags & 1).astype(bool).sum() > 0
    assert len(flags) == count + facts["left_out"]


def test_what_is_left_out_is_told_everywhere_with_the_same_figure(cohort):
    done = CliRunner().invoke(app, ["tile", str(cohort / "recipe.yaml")], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    run = Run.open(recipe_of(cohort))
    state = run.states["inked"]
    found, index = state.not_analysed, run.slides.index(run.slides.records[1])
    covered = shapely.union_all(boxes_of(index))
    areas = read_geojson(run.folder.tissue_outline("inked"), bounds_origin=Point(0, 0))
    tissue = shapely.union_all([area.region for area in areas])
    assert found.share == pytest.approx(tissue.difference(covered).area / tissue.area, abs=0.01)
    assert sum(found.mm2.values()) == pytest.approx(found.share * state.tissue_mm2, abs=0.002)
    assert found.mm2["pen"] > 0.1
    assert f"pen {found.mm2['pen']:.3g} mm²" in done.output
    facts = json.loads((run.folder.tissue / "inked.json").read_text(encoding="utf-8"))
    assert (facts["share_not_analysed"], facts["not_analysed_mm2"]) == (found.share, found.mm2)
    explained = CliRunner().invoke(
        app, ["status", str(cohort / "recipe.yaml"), "--explain", "inked"], env={"COLUMNS": "160"}
    )
    page = (run.folder.tissue / "index.html").read_text(encoding="utf-8")
    assert str(found) in explained.output
    assert str(found) in page
    assert page.index("Tissue not analysed: ") < page.index('id="inked"') < page.index('id="plain"')


def test_annotated_tumour_in_no_tile_fails_its_slide_unless_it_is_accepted(cohort):
    away = shapely.box(5000, 3500, 5600, 4000)  # on glass
    (cohort / "plain.geojson").write_bytes(geojson_of([("Tumor", away)], bounds_origin=Point(0, 0), seed="x"))
    set_cell(cohort, "plain", "annotation", "plain.geojson")
    run = run_stage(recipe_of(cohort), "tile")
    state = run.states["plain"]
    assert (state.state, state.stage, run.states["inked"].state) == ("failed", "tile", "ok")
    for text in (
        "slide plain: 1 of 1",
        "0.075 mm² at x 5300, y 3750",
        "100% of it",
        "tissue_mask",
        "accept_lost_tumour",
    ):
        assert text in state.reason
    page = (run.folder.tissue / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2  # its picture shows where
    assert pd.read_csv(run.folder.tissue_recall).set_index("slide_id").loc["plain", "lost_to"] == "segmentation"
    kept = run.slides.index(run.slides.records[1]).fingerprint
    accepting = run_stage(recipe_of(cohort, **{"tiles.accept_lost_tumour": True}), "tile")
    assert accepting.states["plain"].state == "ok"
    assert accepting.states["plain"].remarks.startswith("1 of 1 annotated lesions lost")
    assert accepting.slides.index(accepting.slides.records[1]).fingerprint == kept


def test_tumour_under_flagged_tiles_alone_names_the_flag(cohort):
    strict = run_stage(recipe_of(cohort), "tile")
    kept = run_stage(recipe_of(cohort, **{"tiles.exclude_flags": [], "output": str(cohort / "all")}), "tile")
    index = kept.slides.index(kept.slides.records[1])
    others = shapely.union_all(boxes_of(strict.slides.index(strict.slides.records[1])))
    flagged = (box.buffer(-1) for box in boxes_of(index)[(index.flags & 1) > 0])
    inner = next(box for box in flagged if not box.intersects(others))
    (cohort / "inked.geojson").write_bytes(geojson_of([("Tumor", inner)], bounds_origin=Point(0, 0), seed="x"))
    set_cell(cohort, "inked", "annotation", "inked.geojson")
    state = run_stage(recipe_of(cohort), "tile").states["inked"]
    assert state.state == "failed"
    assert ": pen)" in state.reason
    assert "shorten `tiles.exclude_flags`" in state.reason


def test_the_sheet_is_made_anew_by_its_command(cohort):
    run_stage(recipe_of(cohort), "tile")
    page = Run.open(recipe_of(cohort)).folder.tissue / "index.html"
    page.unlink()
    done = CliRunner().invoke(app, ["status", str(cohort / "recipe.yaml"), "--sheet"])
    assert done.exit_code == 0, done.output
    assert page.read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 2


def test_tiling_a_slide_imports_no_torch():
    code = "import sys, wsi_ips.pipeline.tile_slide; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def plain_tiff(path: Path, pixels: np.ndarray, mpp: float) -> None:
    import tifffile

    scale = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", metadata=None, **scale)


def tiled(folder: Path, slides: dict[str, Path], tiles: dict[str, object], **columns: str):
    rows = [{"slide_id": name, "path": str(path), **columns} for name, path in slides.items()]
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    recipe = {"name": "t", "output": "out", "manifest": "manifest.csv", "tiles": tiles, "compute": {"workers": 0}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return run_stage(load_recipe(folder / "recipe.yaml"), "tile")


def test_fluorescence_is_unsuited_and_read_only_on_request(tmp_path, real_data):
    slide, tiles = {"dapi": real_data / "slides" / "test3-DAPI-2-(387).ndpi"}, {"mpp": 4.0, "patch_px": 64}
    run = tiled(tmp_path, slide, tiles)
    assert run.states["dapi"].state == "unsuited"
    assert "fluorescence" in run.states["dapi"].reason
    assert len(run.slides.index(run.slides.records[0])) == 0
    assert run.states.with_tiles(run.slides.records) == []
    assert "unsuited" in (run.folder.tissue / "index.html").read_text(encoding="utf-8")
    wanted = tiled(tmp_path, slide, tiles, tissue_method="auto")
    assert wanted.states["dapi"].state == "ok"
    assert wanted.states["dapi"].tiles > 0


def test_a_slide_lower_than_a_tile_is_told_so(tmp_path):
    pixels = np.full((200, 1000, 3), 244, np.uint8)
    pixels[:, 200:800] = np.array([200, 130, 180]) + np.random.default_rng(0).integers(-20, 20, (200, 600, 3))
    plain_tiff(tmp_path / "narrow.tif", pixels, 4.0)
    state = tiled(tmp_path, {"narrow": tmp_path / "narrow.tif"}, {"mpp": 4.0, "patch_px": 256}).states["narrow"]
    assert state.state == "empty"
    assert state.reason.startswith("the slide (4000 x 800 µm) is smaller than a tile (1024 x 1024 µm)")
