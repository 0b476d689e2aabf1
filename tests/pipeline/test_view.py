"""A run as something to look at: maps on their tiles for any grid, and runs that were moved or never finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.pyramids import gradient_level
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError
from wsi_ips.geometry import Box, Scale
from wsi_ips.inference.slide_scores import read_scores, write_scores
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_viewer import TISSUE, RunCollection, layer_of, view_recipe
from wsi_ips.pipeline.slide_states import read_states
from wsi_ips.slides import ArrayReader
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules, build_index
from wsi_ips.tiles.store import read_index
from wsi_ips.tissue.mask import TissueMask
from wsi_ips.viewer.collection import eight_bits


def index_of(*, patch_px: int, stride_px: int) -> TileIndex:
    """Tiles over a slide whose scanned part lies off the corner, with holes in the tissue."""
    tissue = np.random.default_rng(3).random((20, 30)) < 0.8
    with ArrayReader(
        [gradient_level(1500, 1000)], Scale(0.25, 0.26), name="s", bounds=Box(160, 90, 1200, 800)
    ) as reader:
        return build_index(
            reader.info,
            TissueMask(mask=tissue, px0_per_mask_px=Scale(50, 50), threshold=0.0, method="given"),
            TileRules(0.5, patch_px, stride_px, 0.6),
            IndexOrigin("s", "s", "f"),
        )


@pytest.mark.parametrize(("patch_px", "stride_px"), [(32, 32), (32, 16), (32, 24), (24, 32), (32, 31)])
def test_a_map_covers_the_tiles_and_nothing_else(patch_px, stride_px):
    index = index_of(patch_px=patch_px, stride_px=stride_px)
    assert len(index) > 50
    score = np.random.default_rng(1).random(len(index)).astype(np.float32)
    layer = layer_of(index, TISSUE, "viridis", score)
    # Every level-0 pixel, by the tiles themselves: mean of those over it, weighed alike inside a cell.
    covered = np.zeros((1000, 1500), bool)
    for x, y, width, height in np.rint(index.boxes_px0).astype(int):
        covered[y : y + height, x : x + width] = True
    column = ((np.arange(1500) + 0.5 - layer.origin_px0.x) // layer.cell_px0.x).astype(int)
    row = ((np.arange(1000) + 0.5 - layer.origin_px0.y) // layer.cell_px0.y).astype(int)
    shown = np.zeros((1000, 1500), bool)
    on_row = (row >= 0) & (row < layer.values.shape[0])
    on_column = (column >= 0) & (column < layer.values.shape[1])
    shown[np.ix_(on_row, on_column)] = layer.values[np.ix_(row[on_row], column[on_column])] > 0
    assert (shown != covered).mean() < 0.01  # edges: tile corners are whole pixels, cells are real numbers
    if patch_px <= stride_px:
        boxes = index.boxes_px0
        across = ((boxes[:, 0] + boxes[:, 2] / 2 - layer.origin_px0.x) // layer.cell_px0.x).astype(int)
        down = ((boxes[:, 1] + boxes[:, 3] / 2 - layer.origin_px0.y) // layer.cell_px0.y).astype(int)
        np.testing.assert_array_equal(layer.values[down, across], eight_bits(score))


def test_tiles_side_by_side_have_one_value_each():
    index = index_of(patch_px=32, stride_px=32)
    assert np.count_nonzero(layer_of(index, TISSUE, "Greens", index.tissue_fraction).values) == len(index)


@pytest.fixture
def moved(run_to_view: Path, tmp_path: Path) -> Path:
    """The run's folder with the recipe's folder, copied elsewhere."""
    shutil.copytree(run_to_view.parent, tmp_path / "elsewhere")
    return tmp_path / "elsewhere" / "out"


def collection(folder: Path) -> RunCollection:
    return RunCollection(Run.open(view_recipe(folder)))


def test_looking_changes_nothing(moved):
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    looked = collection(moved)
    for entry in looked.entries():
        looked.detail(entry.slide_id)
        looked.downloads(entry.slide_id)
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before


def test_tissue_in_no_tile_is_a_layer_and_told(moved):
    looked = collection(moved)
    slide_id = next(e.slide_id for e in looked.entries() if e.tiles)
    detail = looked.detail(slide_id)
    layer = next(layer for layer in detail.layers if layer.kind == "unseen")
    state = next(s for s in read_states(moved / "run.sqlite") if s.slide_id == slide_id)
    assert ("not analysed", str(state.not_analysed)) in detail.facts
    index = read_index(moved / "tiles.zarr", slide_id)
    shown_mm2 = np.count_nonzero(layer.values) * np.prod(layer.cell_px0) * np.prod(index.mpp) / 1e6
    assert shown_mm2 == pytest.approx(sum(state.not_analysed.mm2.values()), abs=0.02)
    for x, y, width, height in index.boxes_px0:
        column, row = int((x + width / 2) / layer.cell_px0.x), int((y + height / 2) / layer.cell_px0.y)
        assert layer.values[row, column] == 0
    keys = [layer.look.key for layer in detail.layers]
    assert keys == sorted(set(keys))  # a digit selects one layer


def test_outlines_are_the_annotated_lesions(moved):
    looked = collection(moved)
    annotated = [e.slide_id for e in looked.entries() if e.label == "tumor"]
    detail = looked.detail(annotated[0])
    assert detail.outlines
    truth = next(layer for layer in detail.layers if layer.kind == "truth")
    assert truth.values.max() == 255
    assert detail.tiles is not None
    inside = detail.tiles.columns["truth"] > 0.99
    x, y = (detail.tiles.columns[name][inside] for name in ("x", "y"))
    ring = np.concatenate([lesion[0] for lesion in detail.outlines])
    assert (x >= ring[:, 0].min() - 1).all()
    assert (y + detail.tiles.footprint_px0.y <= ring[:, 1].max() + 1).all()


def test_scores_that_are_replaced_are_shown_anew_and_old_ones_are_said_to_be(moved):
    looked = collection(moved)
    name = next(e.slide_id for e in looked.entries() if e.probability is not None)
    assert looked.detail(name).notes == ()
    scores = read_scores(moved / "scores.zarr", name)
    flipped = type(scores)(**{**vars(scores), "tile_probability": 1 - scores.tile_probability, "fingerprint": "old"})
    write_scores(moved / "scores.zarr", flipped)
    detail = looked.detail(name)
    assert detail.tiles is not None
    np.testing.assert_array_equal(detail.tiles.columns["probability"], flipped.positive_probability)
    assert "older model" in detail.notes[0]


def test_without_a_model_the_scores_are_shown_all_the_same(moved):
    shutil.rmtree(moved / "model")
    looked = collection(moved)
    name = next(e.slide_id for e in looked.entries() if e.probability is not None)
    assert looked.model_id == ""
    assert {layer.kind for layer in looked.detail(name).layers} >= {"probability", "attention", "tissue"}


def test_a_broken_annotation_is_a_note(moved):
    looked = collection(moved)
    record = next(r for r in looked._run.slides.records if r.annotation)
    record.annotation.write_text("<no ASAP/>", encoding="utf-8")
    broken = looked.detail(record.slide_id)
    assert broken.outlines is None
    assert any(str(record.annotation.name) in note for note in broken.notes)
    assert broken.layers


def test_a_folder_that_was_moved_with_its_slides_is_found(run_to_view, tmp_path):
    inside = tmp_path / "run"
    shutil.copytree(run_to_view, inside)
    facts = json.loads((inside / "run.json").read_text())
    old = facts["recipe"]["output"]
    facts["recipe"]["manifest"] = f"{old}/cohort/manifest.csv"  # as `wsi-ips demo` has it
    (inside / "run.json").write_text(json.dumps(facts))
    assert view_recipe(inside).manifest == inside.resolve() / "cohort" / "manifest.csv"
    assert view_recipe(inside).output == inside.resolve()


def test_a_folder_without_a_finished_run_asks_for_the_recipe(run_to_view, tmp_path):
    with pytest.raises(RecipeError, match="give the recipe instead"):
        view_recipe(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RecipeError, match="no recipe of this version"):
        view_recipe(tmp_path)
    assert view_recipe(run_to_view.parent / "recipe.yaml") == load_recipe(run_to_view.parent / "recipe.yaml")
