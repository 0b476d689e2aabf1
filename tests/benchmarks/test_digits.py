"""Megapixel digits: what is written is what the labels say, no digit is in two parts, and the product runs on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
from sklearn.datasets import load_digits

from benchmarks.support.digits import DigitsPlan, image_pools, make_digits, paint, plan_canvases
from wsi_ips.annotations import read_asap
from wsi_ips.config import load_recipe
from wsi_ips.geometry import Point, Size
from wsi_ips.pipeline import run_pipeline
from wsi_ips.pipeline.stages import run_stage
from wsi_ips.slides import open_slide
from wsi_ips.tiles.store import read_index

RECIPE = Path(__file__).parents[2] / "pipelines" / "megapixel_digits.yaml"
SET = load_digits()
SMALL = DigitsPlan(canvases=20, side_px0=400, noise=6, split=(0.5, 0.1, 0.4), seed=3)


def test_no_digit_is_in_two_parts_and_all_are_used():
    pools = image_pools(SMALL)
    together = np.concatenate(list(pools.values()))
    assert sorted(together.tolist()) == list(range(1797))
    target = SET.target
    assert all(set(target[images].tolist()) == set(range(10)) for images in pools.values())
    for canvas in plan_canvases(SMALL):
        assert {digit.image for digit in canvas.digits} <= set(pools[canvas.part].tolist())


def test_labels_say_what_is_on_the_canvas():
    target = SET.target
    canvases = plan_canvases(SMALL)
    assert [canvas.part for canvas in canvases] == ["train"] * 10 + ["val"] * 2 + ["test"] * 8
    assert {canvas.tasks["label"] for canvas in canvases[:10]} == {str(value) for value in range(10)}
    for canvas in canvases:
        values = [int(target[digit.image]) for digit in canvas.digits]
        highest = min(range(5), key=lambda n: canvas.digits[n].y_px0)
        assert values.count(int(canvas.tasks["label"])) == 3
        assert int(canvas.tasks["max"]) == max(values)
        assert int(canvas.tasks["top"]) == values[highest]
        assert canvas.tasks["multi"] == ";".join(sorted({str(value) for value in values}))
        assert len({digit.image for digit in canvas.digits}) == 5


def test_digits_lie_where_the_plan_says_and_nothing_overlaps():
    for canvas in plan_canvases(SMALL):
        pixels = paint(canvas, SMALL.side_px0)
        assert pixels.shape == (400, 400)
        ink = pixels > 0
        for digit in canvas.digits:
            drawn = pixels[digit.y_px0 : digit.y_px0 + 28, digit.x_px0 : digit.x_px0 + 28].astype(float)
            known = SET.images[digit.image].repeat(4, 0).repeat(4, 1)[2:30, 2:30]
            assert np.corrcoef(drawn.ravel(), known.ravel())[0, 1] > 0.5
            ink[digit.y_px0 : digit.y_px0 + 28, digit.x_px0 : digit.x_px0 + 28] = False
        for x, y in canvas.strokes.tolist():
            assert ink[y : y + 28, x : x + 28].any()
            ink[y : y + 28, x : x + 28] = False
        assert not ink.any()


def test_the_same_plan_gives_the_same_files_and_another_seed_others(tmp_path):
    plan = DigitsPlan(canvases=3, side_px0=300, noise=3)
    made = [make_digits(tmp_path / name, plan).parent for name in "ab"]
    files = sorted(path.relative_to(made[0]) for path in made[0].rglob("*") if path.is_file())
    assert len(files) == 7
    assert all((made[0] / name).read_bytes() == (made[1] / name).read_bytes() for name in files)
    other = make_digits(tmp_path / "c", DigitsPlan(canvases=3, side_px0=300, noise=3, seed=1)).parent
    assert all((made[0] / name).read_bytes() != (other / name).read_bytes() for name in files)


def test_one_part_alone_is_that_of_the_whole_cohort(tmp_path):
    whole = make_digits(tmp_path / "whole", DigitsPlan(canvases=5, side_px0=300, noise=3, split=(0.4, 0.2, 0.4)))
    alone = make_digits(
        tmp_path / "test", DigitsPlan(canvases=5, side_px0=300, noise=3, split=(0.4, 0.2, 0.4), parts=("test",))
    )
    rows = pd.read_csv(whole, dtype=str).query("split == 'test'").reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_csv(alone, dtype=str), rows)
    written = sorted(path.name for path in (alone.parent / "images").iterdir())
    assert written == [Path(path).name for path in rows["path"]]
    for name in written:
        assert (alone.parent / "images" / name).read_bytes() == (whole.parent / "images" / name).read_bytes()


@pytest.mark.parametrize("side", [400, 2100])
def test_what_the_product_reads_is_what_was_painted(tmp_path, side):
    plan = DigitsPlan(canvases=1, side_px0=side, noise=6, split=(1, 0, 0))
    manifest = make_digits(tmp_path, plan)
    canvas = plan_canvases(plan)[0]
    with open_slide(tmp_path / "images" / "canvas_0000.png") as reader:
        assert reader.info.size_px0 == (side, side)
        shown = reader.read_region(Point(0, 0), 0, Size(side, side))
    np.testing.assert_array_equal(shown, np.repeat(paint(canvas, side)[..., None], 3, 2))
    recipe = load_recipe(RECIPE, {"manifest": str(manifest), "output": str(tmp_path / "run")})
    run_stage(recipe, "tile")
    index = read_index(recipe.output / "tiles.zarr", "canvas_0000")
    assert len(index) == (side // 64) ** 2
    outlined = read_asap(tmp_path / "annotations" / "canvas_0000.xml").tumour
    assert outlined.area == pytest.approx(5 * 28**2)
    for digit in canvas.digits:
        assert outlined.covers(shapely.box(digit.x_px0, digit.y_px0, digit.x_px0 + 28, digit.y_px0 + 28))


@pytest.mark.parametrize(("name", "tiles"), [("megapixel_digits", 36), ("as_published", 64)])
def test_the_recipe_runs_from_manifest_to_predictions(tmp_path, name, tiles):
    manifest = make_digits(tmp_path, SMALL)
    changes = {
        "manifest": str(manifest),
        "output": str(tmp_path / "run"),
        "training.epochs": 1,
        "model.memory_size": 8,
    }
    outcome = run_pipeline(load_recipe(RECIPE.with_stem(name), changes))
    assert outcome.failed == 0
    found = pd.read_csv(tmp_path / "run" / "predictions.csv", dtype={"label": str})
    assert len(found) == 10
    assert (found["tiles"] == tiles).all()
    for task in ("", "max_", "top_"):
        columns = [f"{task}probability_{value}" for value in range(10)]
        assert found[columns].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-4)
    assert found["multi_label"].tolist() == [c.tasks["multi"] for c in plan_canvases(SMALL) if c.part != "train"]
