"""The names of ``import wsi_ips``: light to import, and equal to what the commands compute."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import wsi_ips
from tests.small_cohort import write_recipe
from wsi_ips.annotations import read_annotation, tumour_fraction
from wsi_ips.config import ComputeSection, TilesSection, load_recipe
from wsi_ips.errors import CheckpointError, RecipeError, SlideNotFoundError, TileIndexError
from wsi_ips.geometry import Point
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.tiles.store import read_index

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of a small recipe, started from Python."""
    folder = tmp_path_factory.mktemp("api")
    outcome = wsi_ips.run(write_recipe(folder), {"compute.device": "cpu"})
    assert outcome.failed == 0
    return folder


@pytest.fixture(scope="module")
def slide(finished: Path) -> Path:
    records = load_manifest(finished)
    return next(record.path for record in records if record.split == "test" and record.annotation)


def load_manifest(folder: Path):
    from wsi_ips.manifest.manifest_csv import read_manifest

    return read_manifest(folder / "cohort" / "manifest.csv").records


def test_the_names_are_few_and_importing_them_loads_no_torch():
    assert len(wsi_ips.__all__) <= 15
    assert all(hasattr(wsi_ips, name) for name in wsi_ips.__all__)
    assert set(wsi_ips.__all__) <= set(dir(wsi_ips))
    code = "import sys, wsi_ips; print('torch' in sys.modules, 'numpy' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        wsi_ips.nothing  # noqa: B018


def test_tiles_and_scores_are_those_of_the_commands_to_the_bit(finished, slide):
    model = wsi_ips.load_model(finished / "out", device="cpu")
    prediction = wsi_ips.predict_slide(model, slide, ComputeSection(device="cpu", chunk_size=7))
    stored = read_scores(finished / "out" / "scores.zarr", slide.stem)
    index = read_index(finished / "out" / "tiles.zarr", slide.stem)
    for name in ("x", "y", "flags", "tissue_fraction"):
        np.testing.assert_array_equal(getattr(prediction.tiles.index, name), getattr(index, name))
    np.testing.assert_allclose(prediction.scores.tile_probability, stored.tile_probability, atol=1e-6)
    np.testing.assert_array_equal(prediction.scores.kept, stored.kept)
    assert prediction.probability == pytest.approx(dict(zip(("normal", "tumor"), stored.probability, strict=True)))
    assert prediction.label in ("normal", "tumor")


def test_a_heatmap_shows_every_tile_at_its_place(finished, slide, tmp_path):
    prediction = wsi_ips.predict_slide(wsi_ips.load_model(finished / "out" / "model"), slide)
    index, heatmap = prediction.tiles.index, prediction.heatmap()
    columns = (index.x - heatmap.origin_px0.x) / heatmap.cell_px0.x
    rows = (index.y - heatmap.origin_px0.y) / heatmap.cell_px0.y
    shown = heatmap.values[np.rint(rows).astype(int), np.rint(columns).astype(int)]
    np.testing.assert_allclose(shown, prediction.scores.positive_probability)
    assert np.isfinite(heatmap.values).sum() == len(index)
    prediction.save_heatmap(tmp_path / "map.png", "attention")
    assert (tmp_path / "map.png").stat().st_size > 0
    assert (tmp_path / "map.json").exists()
    with pytest.raises(RecipeError, match="no score map `tumour`"):
        prediction.heatmap("tumour")


def test_a_dataset_gives_the_pixels_of_the_tiles_whatever_the_workers(slide):
    settings = TilesSection(mpp=2.0, patch_px=64)
    tiles = wsi_ips.make_tiles(slide, tiles=settings, annotation=slide.parents[1] / "annotations" / f"{slide.stem}.xml")
    assert tiles.index.tumour_fraction.max() > 0.5
    few = tiles.only(np.array([3, 0, 5], np.int32))
    data = wsi_ips.PatchDataset([tiles, few])
    assert len(data) == len(tiles.index) + 3
    patch, number, tile = data[-2]
    assert (number, tile, patch.shape) == (1, 0, (3, 64, 64))
    np.testing.assert_array_equal((patch * 255).round().byte().permute(1, 2, 0), few.read()[1])
    with pytest.raises(IndexError):
        data[len(data)]
    loader = DataLoader(data, batch_size=16, num_workers=2, shuffle=True, generator=torch.Generator().manual_seed(0))
    ends, order = len(tiles.index), [3, 0, 5]
    for patches, numbers, rows in loader:
        first = int(rows[0]) if numbers[0] == 0 else ends + order.index(int(rows[0]))
        assert torch.equal(patches[0], data[first][0])
    data.close()
    halved = wsi_ips.PatchDataset([few], transform=lambda image: image[:, ::2, ::2])
    assert halved[0][0].shape == (3, 32, 32)


def test_tissue_covers_the_tiles_and_the_annotation(slide):
    with wsi_ips.open_slide(slide) as opened:
        tissue, bounds = wsi_ips.find_tissue(opened), opened.info.bounds
        assert 0.5 < tissue.area_um2(opened.info.mpp) / 1e6 < 2
    index = wsi_ips.make_tiles(slide, tiles=TilesSection(mpp=2.0, patch_px=64)).index
    region = read_annotation(
        slide.parents[1] / "annotations" / f"{slide.stem}.xml", bounds_origin=Point(bounds.x, bounds.y)
    ).tumour
    assert tumour_fraction(region, index.boxes_px0).sum() > 1


def test_training_and_evaluation_return_what_a_script_needs(finished):
    model = wsi_ips.train(finished / "recipe.yaml")  # up to date: nothing is trained
    assert model.card.model_id.startswith("small-")
    evaluation = wsi_ips.evaluate(load_recipe(finished / "recipe.yaml"))
    assert 0 <= evaluation.summary()["test_auc"] <= 1


def test_errors_say_what_is_wrong(finished, tmp_path):
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        wsi_ips.load_model(tmp_path)
    with pytest.raises(SlideNotFoundError):
        wsi_ips.make_tiles(tmp_path / "missing.svs")
    model = wsi_ips.load_model(finished / "out")
    tiles = wsi_ips.make_tiles(next(r.path for r in load_manifest(finished)), tiles=model.tiles, tissue=model.tissue)
    empty = TilesSection(**model.tiles.model_dump() | {"min_tissue_fraction": 1.0, "patch_px": 2048, "stride_px": None})
    with pytest.raises(TileIndexError, match="no tile"):
        wsi_ips.predict_slide(model, wsi_ips.make_tiles(tiles.open.args[0], tiles=empty, tissue=model.tissue))


def test_the_script_of_the_readme_runs(finished, slide, tmp_path, monkeypatch, capsys):
    script = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert script
    assert len(script[1].splitlines()) <= 18
    monkeypatch.chdir(tmp_path)
    Path("slide.svs").symlink_to(slide)
    Path("runs").mkdir()
    Path("runs/my-cohort").symlink_to(finished / "out")
    exec(compile(script[1], "README.md", "exec"), {})
    assert "mm² of tissue" in capsys.readouterr().out
    assert Path("slide.png").exists()
