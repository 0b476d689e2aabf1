"""Each file of a package: by the rules of the program that opens it, and back to what it was made from."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openslide
import pytest
import shapely
import tifffile
import tiffslide
from PIL import Image, ImageDraw
from shapely import affinity

from tests.results.handoff.planted import maps_of, planted_box, tile_scores
from tests.results.scenes import SCENES, Scene, scene
from wsi_ips.annotations import read_annotation, read_asap
from wsi_ips.errors import HandoffError
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.results import lesion_files, ome_tiff, qupath_geojson
from wsi_ips.results.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.handoff_package import Material, PackageContent, stored_package, write_package
from wsi_ips.results.handoff_pictures import choose_tiles, draw_gallery
from wsi_ips.results.lesion_files import joined, lesion_table
from wsi_ips.results.lesions import covered_region, find_lesions
from wsi_ips.results.score_raster import ScoreMaps

RING = {
    "type": "array",
    "minItems": 4,
    "items": {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}},
}
QUPATH = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"},
                    "geometry": {
                        "oneOf": [
                            {
                                "required": ["type", "coordinates"],
                                "properties": {
                                    "type": {"const": "Polygon"},
                                    "coordinates": {"type": "array", "minItems": 1, "items": RING},
                                },
                            },
                            {
                                "required": ["type", "coordinates"],
                                "properties": {
                                    "type": {"const": "MultiPolygon"},
                                    "coordinates": {"type": "array", "items": {"type": "array", "items": RING}},
                                },
                            },
                        ]
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification"],
                        "additionalProperties": False,
                        "properties": {
                            "objectType": {"enum": ["annotation", "detection", "tile", "cell"]},
                            "name": {"type": "string"},
                            "isLocked": {"type": "boolean"},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "properties": {
                                    "name": {"type": "string", "minLength": 1},
                                    "color": {
                                        "type": "array",
                                        "minItems": 3,
                                        "maxItems": 3,
                                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                                    },
                                },
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}
"""What QuPath 0.5 to 0.8 asks: a colour with each class, UUIDs, type and measurements within the properties."""


def refuse(text: str) -> None:
    raise AssertionError(f"{text} in JSON")


def features_of(path: Path) -> list[dict[str, Any]]:
    document = json.loads(gzip.decompress(path.read_bytes()), parse_constant=refuse)
    jsonschema.validate(document, QUPATH)
    return document["features"]


def of_grid(values: np.ndarray, *, tile: float = 64.0, **changes: object) -> ScoreMaps:
    """A map drawn by hand: a tile per cell that is not NaN."""
    row, column = np.nonzero(np.isfinite(values))
    width, height = (int(side * tile) for side in values.shape[::-1])
    s = Scene(scene().reader, Box(0, 0, width, height), scene().plan, 64, np.zeros((0, 2), int), scene().view)
    return maps_of(
        s,
        values[row, column],
        x=(column * tile).astype(int),
        y=(row * tile).astype(int),
        stride_px0=Scale(tile, tile),
        footprint_px0=Scale(tile, tile),
        size_px0=Size(width, height),
        **changes,
    )


PICTURE = """
..........
.########.
.#......#.
.#.##...#.
.#.##...#.
.#......##
.########.
.........#
###.......
###.......
"""


def content_of(maps: ScoreMaps) -> PackageContent:
    return PackageContent.of(maps, Material())


def drawn(picture: str = PICTURE) -> np.ndarray:
    rows = picture.split()
    return np.array([[0.9 if cell == "#" else 0.1 for cell in row] for row in rows], np.float32)


def test_lesions_are_what_lies_together_largest_first() -> None:
    ring, square, island = find_lesions(of_grid(drawn()))  # the cell below the ring touches it at a corner
    assert [lesion.number for lesion in (ring, square, island)] == [1, 2, 3]
    cell_um2 = (64 * 0.5) ** 2
    assert [lesion.area_um2 / cell_um2 for lesion in (ring, square, island)] == pytest.approx([26, 6, 4])
    assert square.diameter_um == pytest.approx(np.hypot(3, 2) * 32)
    assert square.box_px0 == Box(0, 8 * 64, 3 * 64, 2 * 64)
    assert square.centroid_px0 == (96.0, 576.0)
    assert (ring.mean, ring.highest) == pytest.approx((0.9, 0.9))
    assert len(shapely.get_interior_ring(shapely.get_parts(ring.region)[0], 0).coords) > 3  # what it encloses is a hole


def test_a_tile_with_the_threshold_itself_is_positive_and_one_below_is_not() -> None:
    values = np.full((3, 3), 0.1, np.float32)
    values[1, 1] = 0.5
    assert len(find_lesions(of_grid(values))) == 1
    values[1, 1] = np.nextafter(np.float32(0.5), np.float32(0))
    assert find_lesions(of_grid(values)) == []


@pytest.mark.parametrize("name", SCENES)
def test_lesions_claim_nothing_that_no_tile_covers(name: str) -> None:
    s = scene(**SCENES[name])
    keep = np.random.default_rng(3).random(len(s.corners)) < 0.5
    s = replace(s, corners=s.corners[keep])
    maps = maps_of(s, np.ones(len(s.corners)))
    x, y = s.corners.T
    boxes = shapely.union_all(shapely.box(x, y, x + s.plan.footprint_px0.x, y + s.plan.footprint_px0.y))
    found = shapely.union_all([lesion.region for lesion in find_lesions(maps)])
    rim = shapely.union_all(boxes).boundary.length  # corners of tiles are rounded to whole pixels
    assert shapely.symmetric_difference(found, boxes).area <= 1.01 * rim
    assert shapely.symmetric_difference(covered_region(maps.raster), boxes).area <= 1.01 * rim


def test_geojson_follows_qupaths_rules_and_comes_back_through_shapely(tmp_path: Path) -> None:
    s = scene(**SCENES["bounds"])
    maps = maps_of(s, tile_scores(s, planted_box(s)))
    content = PackageContent.of(maps, Material(tissue=shapely.box(*s.bounds[:2], s.bounds.right, s.bounds.bottom)))
    lesions = content.lesions
    (file,) = qupath_geojson.write_best(tmp_path, content)
    features = features_of(file.path)
    assert len({f["id"] for f in features}) == len(features)
    assert {uuid.UUID(f["id"]).version for f in features} == {5}
    areas = {f["properties"]["name"]: f for f in features if f["properties"]["objectType"] == "annotation"}
    assert set(areas) == {"Lesion 1", "Not analysed"}
    assert all(f["properties"]["isLocked"] for f in areas.values())
    region = shapely.geometry.shape(areas["Lesion 1"]["geometry"])
    assert region.is_valid
    assert affinity.translate(region, *maps.bounds_origin).equals(lesions[0].region)
    measured = areas["Lesion 1"]["properties"]["measurements"]
    assert measured["area mm²"] == pytest.approx(lesions[0].area_um2 / 1e6, rel=1e-5)
    assert measured["longest diameter mm"] == pytest.approx(lesions[0].diameter_um / 1e3, rel=1e-5)
    assert areas["Not analysed"]["properties"]["measurements"]["area mm²"] > 0
    shown = [f for f in features if f["properties"]["objectType"] == "tile"]
    assert len(shown) == (maps.score >= 0.5).sum()
    for feature in shown:
        row = feature["properties"]["measurements"]["tile number"]
        corner = maps.x[row] - s.bounds.x, maps.y[row] - s.bounds.y
        assert shapely.geometry.shape(feature["geometry"]).bounds[:2] == corner
        assert feature["properties"]["measurements"]["attention (tile)"] == pytest.approx(
            maps.scores["attention"][row], abs=1e-6
        )


def test_our_own_reader_takes_the_lesions_for_annotated_tumour(tmp_path: Path) -> None:
    s = scene(**SCENES["bounds"])
    maps = maps_of(s, tile_scores(s, planted_box(s)))
    content = content_of(maps)
    path = tmp_path / "a.geojson.gz"
    qupath_geojson.write_geojson(path, content, np.zeros(0, int))
    assert read_annotation(path, bounds_origin=maps.bounds_origin).tumour.equals(content.lesions[0].region)


def test_the_same_scores_make_the_same_bytes_and_another_model_other_ids(tmp_path: Path) -> None:
    maps = of_grid(drawn())
    texts = []
    for number, fingerprint in enumerate(("f00d", "f00d", "beef")):
        made = replace(maps, fingerprint=fingerprint)
        path = tmp_path / f"{number}.gz"
        qupath_geojson.write_geojson(path, content_of(made), made.best_first())
        texts.append(path.read_bytes())
    assert texts[0] == texts[1] != texts[2]
    first, last = (json.loads(gzip.decompress(text))["features"] for text in texts[1:])
    assert not {f["id"] for f in first} & {f["id"] for f in last}


def test_a_negative_slide_has_no_lesion_and_its_highest_tiles_are_called_below(tmp_path: Path) -> None:
    maps = of_grid(np.linspace(0, 0.2, 100, dtype=np.float32).reshape(10, 10), probability=0.01)
    facts = write_package(tmp_path / "out", maps, Material(), formats=("geojson", "asap", "lesions"))
    assert (facts["lesions"], facts["lesion_area_mm2"], facts["longest_diameter_mm"]) == (0, 0, 0)
    features = features_of(tmp_path / "out" / "a.b (1).geojson.gz")
    assert len(features) == qupath_geojson.LEAST_TILES
    assert {f["properties"]["classification"]["name"] for f in features} == {"below 0.5"}
    assert sorted(f["properties"]["measurements"]["tile number"] for f in features) == list(range(88, 100))
    assert read_asap(tmp_path / "out" / "a.b (1)_lesions.xml").tumour.is_empty
    assert len((tmp_path / "out" / "a.b (1)_lesions.csv").read_text().splitlines()) == 1


def test_what_is_too_much_for_qupath_is_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qupath_geojson, "MOST_LESIONS", 2)
    monkeypatch.setattr(qupath_geojson, "MOST_TILES", 20)
    facts = write_package(tmp_path / "out", of_grid(drawn()), Material(), formats=("geojson", "lesions"))
    assert facts["files"][0]["left_out"] == {"lesions": 1, "tiles": 80}
    assert facts["files"][0]["check"]["lesions"] == 2
    table = (tmp_path / "out" / "a.b (1)_lesions.csv").read_text()
    assert [row["lesion"] for row in csv.DictReader(io.StringIO(table))] == ["1", "2", "3"]
    facts = write_package(tmp_path / "out", of_grid(drawn()), Material(), formats=("geojson-all-tiles", "geojson"))
    assert [entry["name"] for entry in facts["files"]] == ["a.b (1)_all_tiles.geojson.gz", "a.b (1).geojson.gz"]
    assert facts["files"][0]["left_out"]["tiles"] == 0
    assert facts["files"][0]["check"]["tiles"] == 100


def test_asap_leaves_out_holes_and_keeps_the_lesion_within(tmp_path: Path) -> None:
    lesions = find_lesions(of_grid(drawn()))
    lesion_files.write_outlines(tmp_path / "a.xml", lesions)
    wanted = shapely.union_all([lesion.region for lesion in lesions])
    assert read_asap(tmp_path / "a.xml").tumour.equals(wanted)
    text = (tmp_path / "a.xml").read_text()
    assert text.count('PartOfGroup="Exclusion"') > 1
    assert read_asap(tmp_path / "a.xml").tumour.contains(shapely.Point(4 * 64, 4 * 64))  # the island
    assert not read_asap(tmp_path / "a.xml").tumour.contains(shapely.Point(6.5 * 64, 4 * 64))


def test_ome_tiff_is_a_pyramid_with_scale_channels_and_nothing_where_there_is_no_tile(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((301, 517)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    maps = of_grid(values, mpp=Scale(0.25, 0.26))
    path = tmp_path / "a.ome.tif"
    ome_tiff.write_ome_tiff(path, maps)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert tiff.is_ome
        assert tiff.series[0].axes == "CYX"
        levels = [level.asarray() for level in tiff.series[0].levels]
        assert (len(tiff.pages), tiff.pages[0].is_tiled, len(tiff.pages[0].subifds)) == (2, True, 4)
        image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
    assert [level.shape for level in levels] == [(2, 304 >> k, 528 >> k) for k in range(5)]
    assert [channel["Name"] for channel in image["Pixels"]["Channel"]] == ["probability", "attention"]
    assert (image["Pixels"]["PhysicalSizeX"], image["Pixels"]["PhysicalSizeY"]) == pytest.approx((16, 16.64))
    assert np.array_equal(levels[0][0, :301, :517], values, equal_nan=True)
    assert np.isnan(levels[0][:, 301:]).all()
    block = levels[0][0, :16, :16]
    assert levels[4][0, 0, 0] == pytest.approx(np.nanmean(block), rel=1e-5)  # by tiles that are known, not by pixels
    slide = tiffslide.TiffSlide(path)
    assert slide.level_count == 5
    assert slide.level_downsamples == pytest.approx((1, 2, 4, 8, 16))
    mpp = (slide.properties["tiffslide.mpp-x"], slide.properties["tiffslide.mpp-y"])
    assert mpp == pytest.approx((16, 16.64), rel=1e-5)
    shown = slide.read_region((0, 0), 2, (40, 30), as_array=True)
    assert np.array_equal(shown[..., 0], levels[2][0, :30, :40], equal_nan=True)
    slide.close()
    with openslide.OpenSlide(path) as other:  # it knows the scale, but decodes no real numbers
        assert float(other.properties["openslide.mpp-x"]) == pytest.approx(16, rel=1e-5)
        assert other.dimensions == (528, 304)


def test_a_level_of_cells_without_tiles_is_unknown_and_one_of_a_single_tile_is_that() -> None:
    values = np.full((1, 5, 9), np.nan, np.float32)
    values[0, 4, 8] = 0.7
    levels = ome_tiff.pyramid(values)
    assert levels[-1].shape == (1, 1, 1)
    assert levels[-1][0, 0, 0] == pytest.approx(0.7)
    assert np.isfinite(levels[1]).sum() == 1
    assert [level.shape for level in ome_tiff.pyramid(np.zeros((1, 1, 1), np.float32))] == [(1, 1, 1)]


def test_lesions_of_several_slides_make_one_table() -> None:
    one, none = of_grid(drawn()), of_grid(drawn() * 0)
    tables = [lesion_table(maps, find_lesions(maps)) for maps in (one, none, replace(one, slide_id="other"))]
    rows = list(csv.DictReader(io.StringIO(joined(tables))))
    assert [(row["slide_id"], row["lesion"]) for row in rows] == [
        *[("a.b (1)", str(n)) for n in (1, 2, 3)],
        *[("other", str(n)) for n in (1, 2, 3)],
    ]
    square = rows[1]
    assert float(square["area_mm2"]) == pytest.approx(6 * 0.032**2, rel=1e-5)
    assert (square["x_px0"], square["y_px0"], square["width_px0"], square["height_px0"]) == ("0", "512", "192", "128")


def test_the_gallery_shows_the_tiles_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda d, xy, text, *a, **k: said.append(text) or original(d, xy, text, *a, **k)
    )
    s = scene()
    score = np.random.default_rng(5).random(len(s.corners)).astype(np.float32)
    maps = maps_of(s, score)
    choice = choose_tiles(maps, 7)
    patches = s.patches(choice.tiles)
    page = np.asarray(draw_gallery(maps, choice, patches))
    assert score[choice.top].tolist() == sorted(score, reverse=True)[:7]
    assert score[choice.bottom].tolist() == sorted(score)[:7]
    assert {"Research use only" in text for text in said} == {True, False}
    for tile in choice.tiles.tolist():
        assert f"x {s.corners[tile][0]}  y {s.corners[tile][1]}" in said
    assert {"no. 1", "no. 7", f"no. {len(score)}", f"no. {len(score) - 6}"} <= set(said)
    shown = Image.fromarray(patches[0]).resize((200, 200), Image.Resampling.BICUBIC)
    assert any(np.array_equal(page[y : y + 200, 14:214], np.asarray(shown)) for y in range(page.shape[0] - 200))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_slide_of_few_tiles_shows_none_twice(count: int) -> None:
    maps = of_grid(np.linspace(0, 1, 5, dtype=np.float32)[None])
    choice = choose_tiles(maps, count)
    assert len(set(choice.tiles.tolist())) == len(choice.tiles) == min(2 * count, 5)
    assert draw_gallery(maps, choice, np.zeros((len(choice.tiles), 8, 8, 3), np.uint8)).width > 1000


def test_the_manifest_lists_every_file_with_its_checksum(tmp_path: Path) -> None:
    maps = of_grid(drawn())
    facts = write_package(
        tmp_path / "out", maps, Material(tissue=shapely.box(0, 0, 700, 640)), formats=("ome-tiff", "geojson", "lesions")
    )
    files = {entry["name"]: entry for entry in facts["files"]}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*files, "package.json"}
    for name, entry in files.items():
        data = (tmp_path / "out" / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (facts["note"], facts["model_id"], facts["fingerprint"]) == ("Research use only", "net-0123", "f00d")
    assert facts["not_analysed_mm2"] == pytest.approx(60 * 640 * 0.25e-6, abs=1e-6)
    assert stored_package(tmp_path / "out") == facts
    (tmp_path / "out" / "a.b (1)_lesions.csv").unlink()
    assert stored_package(tmp_path / "out") is None
    again = write_package(tmp_path / "out", maps, Material(), formats=("lesions",))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a.b (1)_lesions.csv", "package.json"}
    assert stored_package(tmp_path / "out") == again


@pytest.mark.parametrize("name", SCENES)
def test_files_made_from_other_places_or_scores_are_not_handed_over(name: str, tmp_path: Path) -> None:
    s = scene(**SCENES[name])
    maps = maps_of(s, tile_scores(s, planted_box(s)))
    content, tiles = content_of(maps), qupath_geojson.chosen_tiles(maps)
    path = tmp_path / "a"
    step = round(maps.footprint_px0.x)
    moved = replace(maps, x=maps.x + step, grid=maps.grid._replace(x=maps.grid.x + step))
    other = replace(maps, scores={**maps.scores, "attention": maps.scores["attention"][::-1]})
    for wrong in (moved, other):
        ome_tiff.write_ome_tiff(path, wrong)
        with pytest.raises(HandoffError, match=r"slide a\.b \(1\): a does not match the scores it was made from"):
            ome_tiff.check_maps(path, maps)
        qupath_geojson.write_geojson(path, content_of(wrong), tiles)
        with pytest.raises(HandoffError, match="not handed over"):
            qupath_geojson.check_geojson(path, content, tiles)
    lesion_files.write_outlines(path, find_lesions(moved))
    with pytest.raises(HandoffError, match="not handed over"):
        lesion_files.check_outlines(path, content)
    qupath_geojson.write_geojson(path, content, tiles[:-1])
    with pytest.raises(HandoffError, match="not handed over"):
        qupath_geojson.check_geojson(path, content, tiles)


def test_nothing_stays_of_a_package_that_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = of_grid(drawn())
    before = write_package(tmp_path / "out", maps, Material(), formats=("lesions",))
    monkeypatch.setattr(lesion_files, "MOST_AREA_OFF", -1.0)
    with pytest.raises(HandoffError):
        write_package(tmp_path / "out", maps, Material(), formats=("lesions", "asap"))
    assert stored_package(tmp_path / "out") == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_gallery_holds_tiles_that_can_be_read_only(tmp_path: Path) -> None:
    maps, asked = of_grid(np.linspace(0, 1, 30, dtype=np.float32)[None]), []

    def read(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return np.zeros((len(rows), 8, 8, 3), np.uint8)

    readable = np.arange(0, 30, 2, dtype=np.int32)
    write_package(tmp_path / "out", maps, Material(read_tiles=read, readable=readable), formats=("gallery",))
    assert sorted(asked) == readable.tolist()
    assert asked[0] == 28
    write_package(tmp_path / "none", maps, Material(), formats=("gallery",))
    assert [p.name for p in (tmp_path / "none").iterdir()] == ["package.json"]


def test_every_format_says_what_it_is_and_can_be_loaded() -> None:
    for entry in HANDOFF_FORMATS.values():
        assert entry.help
        assert callable(entry.load())
