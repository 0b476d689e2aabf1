"""Pictures: what is hot is hot where it lies, and what is not stays as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.results.scenes import CAPTION, SCENES, Scene, scene
from wsi_ips.errors import EvaluationError, ScoresError
from wsi_ips.geometry import Size
from wsi_ips.results.overlay import (
    Frame,
    colour_map,
    draw_overlay,
    draw_scale_bar,
    fitted,
    font,
    probability_text,
    sidecar,
    write_overlay,
)
from wsi_ips.results.slide_heatmaps import alignment_correlation


def written(folder: Path, s: Scene, score: np.ndarray, kind: str = "probability") -> tuple[np.ndarray, dict]:
    """A picture and its sidecar as they come back from the disk."""
    raster = s.raster(score)
    picture = draw_overlay(s.view, raster, CAPTION, kind=kind, opacity=0.7)
    path = folder / "a.b_probability.png"
    write_overlay(path, picture, sidecar(s.view, raster, CAPTION, kind=kind, fingerprint="f00d"))
    return np.asarray(Image.open(path)), json.loads((folder / "a.b_probability.json").read_text())


@pytest.mark.parametrize("options", SCENES.values(), ids=SCENES)
def test_a_hot_tile_is_hot_at_its_place_through_the_sidecar(options: dict, tmp_path: Path) -> None:
    s = scene(**options)
    rng, width_height = np.random.default_rng(1), s.plan.footprint_px0
    for tile in rng.permutation(len(s.corners))[:4]:
        score = np.zeros(len(s.corners))
        cold, _ = written(tmp_path, s, score)
        score[tile] = 1
        warm, facts = written(tmp_path, s, score)
        box = facts["map_box_px"]
        changed = (warm != cold).any(-1)[box[1] : box[1] + box[3], box[0] : box[0] + box[2]]
        strength = np.abs(warm.astype(int) - cold).sum(-1)[box[1] : box[1] + box[3], box[0] : box[0] + box[2]]
        row, column = (np.average(axis, weights=strength) for axis in np.indices(changed.shape))
        affine = facts["to_level0"]
        x = affine["a"] * (column + box[0] + 0.5) + affine["c"]
        y = affine["e"] * (row + box[1] + 0.5) + affine["f"]
        middle = s.corners[tile] + np.array(width_height) / 2
        assert abs(x - middle[0]) < width_height.x / 2
        assert abs(y - middle[1]) < width_height.y / 2
        if s.stride_px >= s.plan.patch_size.width:  # no overlap: the very pixels of the tile change
            assert abs(x - middle[0]) <= affine["a"] + 1
            assert abs(y - middle[1]) <= affine["e"] + 1
            assert changed.sum() * affine["a"] * affine["e"] == pytest.approx(np.prod(width_height), rel=0.2)


def test_a_slide_without_tumour_stays_uncoloured(tmp_path: Path) -> None:
    s = scene()
    score = np.random.default_rng(0).uniform(0, 0.05, len(s.corners))
    shown = colour_map(s.view, s.raster(score), kind="probability", opacity=0.75)
    assert np.abs(shown.astype(int) - s.view.pixels).max() <= np.ceil(0.05 * 0.75 * 255)
    assert np.array_equal(colour_map(s.view, s.raster(0 * score), kind="probability", opacity=1.0), s.view.pixels)


def test_probability_colours_do_not_depend_on_the_slides_other_tiles() -> None:
    s = scene()
    low, high = np.zeros(len(s.corners)), np.zeros(len(s.corners))
    low[5], high[5], high[9] = 0.6, 0.6, 1.0
    x, y = s.corners[5]
    rows, columns = s.view.centres_px0()[1], s.view.centres_px0()[0]
    inside = np.ix_((rows > y) & (rows < y + 64), (columns > x) & (columns < x + 64))
    alone, beside = (colour_map(s.view, s.raster(v), kind="probability", opacity=0.7)[inside] for v in (low, high))
    assert np.array_equal(alone, beside)


@pytest.mark.parametrize("options", [SCENES["gaps"], SCENES["bounds"]], ids=["gaps", "bounds"])
@pytest.mark.parametrize("kind", ["probability", "attention"])
def test_what_no_tile_covers_is_untouched(options: dict, kind: str) -> None:
    s = scene(**options)
    keep = np.arange(len(s.corners)) % 3 == 0
    shown = colour_map(s.view, s.raster(np.ones(len(s.corners)), keep), kind=kind, opacity=1.0)
    xs, ys = s.view.centres_px0()
    step, (width, height) = s.view.px0_per_px, s.plan.footprint_px0
    near = np.zeros(shown.shape[:2], bool)
    for x, y in s.corners[keep]:
        near |= ((ys > y - step.y) & (ys < y + height + step.y))[:, None] & (
            (xs > x - step.x) & (xs < x + width + step.x)
        )[None]
    assert (~near).mean() > 0.2
    assert np.array_equal(shown[~near], s.view.pixels[~near])


def test_opacity_follows_the_score() -> None:
    s = scene()
    change = []
    for score in (0.1, 0.4, 0.7, 1.0):
        shown = colour_map(s.view, s.raster(np.full(len(s.corners), score)), kind="probability", opacity=0.6)
        change.append(np.corrcoef(shown.astype(float).ravel(), s.view.pixels.ravel())[0, 1])
    assert change == sorted(change, reverse=True)
    texture = shown[:, :, 1].astype(float)[40:400, 40:600]
    assert texture.std() > 0.35 * s.view.pixels[40:400, 40:600, 1].std()  # H&E is still read at a score of 1


def test_scores_beyond_the_fixed_scale_are_refused() -> None:
    s = scene()
    with pytest.raises(ScoresError, match=r"probability map: scores reach 0 to 1\.5, not 0-1"):
        colour_map(s.view, s.raster(np.linspace(0, 1.5, len(s.corners))), kind="probability", opacity=0.5)


def test_the_sidecar_says_what_made_the_picture_and_what_it_shows(tmp_path: Path) -> None:
    s = scene(**SCENES["bounds"])
    picture, facts = written(tmp_path, s, np.linspace(0.25, 0.75, len(s.corners)))
    assert facts["fingerprint"] == "f00d"
    assert facts["colour_range"] == [0.0, 1.0]
    assert facts["value_range"] == [0.25, 0.75]
    assert (facts["slide_id"], facts["slide_probability"], facts["model_id"]) == ("slide_7", 0.25, "net-0123")
    assert facts["tiles"] == len(s.corners)
    assert facts["note"] == "Research use only"
    x, y, width, height = facts["map_box_px"]
    cold = colour_map(s.view, s.raster(np.linspace(0.25, 0.75, len(s.corners))), kind="probability", opacity=0.7)
    assert np.array_equal(picture[y : y + height, x : x + width], cold)


def test_a_slide_without_tiles_has_a_picture_and_no_range() -> None:
    s = scene()
    empty = s.raster(np.zeros(len(s.corners)), np.s_[:0])
    picture = draw_overlay(s.view, empty, CAPTION, kind="attention", opacity=0.7)
    assert sidecar(s.view, empty, CAPTION, kind="attention", fingerprint="f")["value_range"] is None
    assert picture.width >= s.view.pixels.shape[1]


@pytest.mark.parametrize("kind", ["probability", "attention"])
@pytest.mark.parametrize("options", SCENES.values(), ids=SCENES)
def test_tiles_read_again_look_like_the_picture_and_shifted_ones_do_not(
    options: dict, kind: str, tmp_path: Path
) -> None:
    s = scene(**options)
    score = np.random.default_rng(2).random(len(s.corners)) ** 2
    picture, facts = written(tmp_path, s, score, kind)
    top = np.argsort(-score)[:8]
    x, y = s.corners[top].T
    assert alignment_correlation(picture, facts, s.patches(top), x, y) > 0.95
    for dx, dy in ((0.5, 0), (0, -0.5)):
        wrong = (x + int(dx * s.plan.footprint_px0.x), y + int(dy * s.plan.footprint_px0.y))
        assert alignment_correlation(picture, facts, s.patches(top), *wrong) < 0.6
    swapped = s.patches(top).swapaxes(1, 2)
    assert alignment_correlation(picture, facts, swapped, x, y) < 0.6


def test_alignment_without_texture_is_an_error_not_a_number(tmp_path: Path) -> None:
    s = scene()
    picture, facts = written(tmp_path, s, np.zeros(len(s.corners)))
    flat = np.full((1, 64, 64, 3), 200, np.uint8)
    with pytest.raises(EvaluationError, match="slide slide_7: alignment cannot be tested"):
        alignment_correlation(picture, facts, flat, *s.corners[:1].T)
    with pytest.raises(EvaluationError, match="alignment cannot be tested"):  # outside the map
        alignment_correlation(picture, facts, s.patches(np.array([0])), np.array([90_000]), np.array([0]))


def test_outlines_are_drawn_where_they_lie() -> None:
    s = scene(**SCENES["bounds"])
    ring = np.array([[400.0, 300], [800, 300], [800, 500], [400, 500]])
    raster = s.raster(np.zeros(len(s.corners)))
    marked = replace(CAPTION, outlines=(ring, np.zeros((0, 2))))
    plain = np.asarray(draw_overlay(s.view, raster, CAPTION, kind="probability", opacity=0.7))
    lined = np.asarray(draw_overlay(s.view, raster, marked, kind="probability", opacity=0.7))
    facts = sidecar(s.view, raster, marked, kind="probability", fingerprint="f")
    x, y, width, height = facts["map_box_px"]
    rows, columns = np.nonzero((plain != lined).any(-1)[y : y + height, x : x + width])
    affine = facts["to_level0"]
    x0, y0 = (columns + x + 0.5) * affine["a"] + affine["c"], (rows + y + 0.5) * affine["e"] + affine["f"]
    assert (x0.min(), x0.max(), y0.min(), y0.max()) == pytest.approx((400, 800, 300, 500), abs=2.5 * affine["a"])
    assert not ((x0 > 420) & (x0 < 780) & (y0 > 320) & (y0 < 480)).any()  # a line, not a filled area


def test_every_picture_carries_scale_slide_model_and_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda d, xy, text, *a, **k: said.append(text) or original(d, xy, text, *a, **k)
    )
    s = scene()
    draw_overlay(s.view, s.raster(np.zeros(len(s.corners))), CAPTION, kind="attention", opacity=0.7)
    assert {"slide_7", "slide: tumor 0.250", "model net-0123", "Research use only", "100 µm"} <= set(said)
    assert "Attention map, relative within this slide" in said


@pytest.mark.parametrize(("pixels_wide", "mpp"), [(2000, 8.0), (600, 0.5), (90, 0.04), (2048, 40.0)])
def test_the_scale_bar_is_as_long_as_it_says(pixels_wide: int, mpp: float, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda d, xy, text, *a, **k: said.append(text))
    frame = Frame(Size(pixels_wide, 300))
    page = Image.new("RGB", frame.page_size, (255, 255, 255))
    draw_scale_bar(page, frame, mpp)
    drawn = np.nonzero((np.asarray(page) != 255).any((0, 2)))[0]
    number, unit = said[0].split()
    um = int(number) * (1000 if unit == "mm" else 1)
    assert (drawn.max() - drawn.min() + 1) * mpp == pytest.approx(um, abs=mpp)


def test_rounding_makes_up_no_certainty() -> None:
    assert [probability_text(p) for p in (0, 0.0001, 0.25, 0.9997, 1)] == [
        "0.000",
        "< 0.001",
        "0.250",
        "> 0.999",
        "1.000",
    ]


def test_long_names_are_cut_to_the_page() -> None:
    letters = font(20, bold=True)
    cut = fitted("x" * 300, 200, letters)
    assert cut.endswith("…")
    assert letters.getlength(cut) <= 200
    assert fitted("slide", 200, letters) == "slide"
