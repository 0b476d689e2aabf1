"""A planted lesion lies in every file where it lies on the slide, whatever the grid: within half a tile."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from tests.results.planted import maps_of, planted_box, tile_scores
from tests.results.scenes import CAPTION, SCENES, Scene, scene
from wsi_ips.annotations import read_asap
from wsi_ips.results.handoff_package import Material, write_package
from wsi_ips.results.overlay import draw_overlay, sidecar, write_overlay
from wsi_ips.results.score_raster import ScoreMaps

FORMATS = ("overlays", "ome-tiff", "geojson", "asap", "lesions")


def in_png(folder: Path, s: Scene, score: np.ndarray) -> tuple[float, ...]:
    """Box of what turns coloured by the lesion, through the sidecar's affine."""
    shown = []
    for values in (score, 0 * score):
        raster, path = s.raster(values), folder / "p.png"
        picture = draw_overlay(s.view, raster, CAPTION, kind="probability", opacity=1.0)
        write_overlay(path, picture, sidecar(s.view, raster, CAPTION, kind="probability", fingerprint="f"))
        shown.append(np.asarray(Image.open(path)).astype(int))
    facts = json.loads((folder / "p.json").read_text())
    x, y, width, height = facts["map_box_px"]
    strong = np.abs(shown[0] - shown[1]).sum(-1) > 30
    rows, columns = np.nonzero(strong[y : y + height, x : x + width])
    a, c, e, f = (facts["to_level0"][key] for key in "acef")
    left, right = a * (columns.min() + x) + c, a * (columns.max() + 1 + x) + c
    return left, e * (rows.min() + y) + f, right, e * (rows.max() + 1 + y) + f


def in_ome_tiff(path: Path, maps: ScoreMaps) -> tuple[float, ...]:
    """Box of the pixels from the threshold on, by the file's scale and position and the slide's µm/px."""
    with tifffile.TiffFile(path) as tiff:
        values = tiff.series[0].levels[0].asarray()[0]
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    rows, columns = np.nonzero(np.nan_to_num(values) >= 0.5)
    plane = pixels["Plane"][0]
    x = np.array([columns.min(), columns.max() + 1]) * pixels["PhysicalSizeX"] + plane["PositionX"]
    y = np.array([rows.min(), rows.max() + 1]) * pixels["PhysicalSizeY"] + plane["PositionY"]
    return x[0] / maps.mpp.x, y[0] / maps.mpp.y, x[1] / maps.mpp.x, y[1] / maps.mpp.y


def in_geojson(path: Path, maps: ScoreMaps) -> tuple[float, ...]:
    """Box of the annotations, moved from QuPath's corner to that of level 0."""
    features = json.loads(gzip.decompress(path.read_bytes()))["features"]
    areas = [f["geometry"] for f in features if f["properties"]["objectType"] == "annotation"]
    left, top, right, bottom = shapely.union_all([shapely.geometry.shape(area) for area in areas]).bounds
    return left + maps.bounds.x, top + maps.bounds.y, right + maps.bounds.x, bottom + maps.bounds.y


def in_table(path: Path) -> tuple[float, ...]:
    with path.open() as file:
        rows = [{name: float(row[name]) for name in row if name.endswith("_px0")} for row in csv.DictReader(file)]
    return (
        min(r["x_px0"] for r in rows),
        min(r["y_px0"] for r in rows),
        max(r["x_px0"] + r["width_px0"] for r in rows),
        max(r["y_px0"] + r["height_px0"] for r in rows),
    )


@pytest.mark.parametrize("name", SCENES)
def test_a_planted_lesion_lies_in_every_file_where_it_lies_on_the_slide(name: str, tmp_path: Path) -> None:
    s = scene(**SCENES[name])
    truth = planted_box(s)
    score = tile_scores(s, truth)
    maps = maps_of(s, score)
    write_package(tmp_path / "out", maps, Material(), formats=FORMATS)
    found = {
        "PNG": in_png(tmp_path, s, score),
        "OME-TIFF": in_ome_tiff(tmp_path / "out" / "a.b (1)_maps.ome.tif", maps),
        "GeoJSON": in_geojson(tmp_path / "out" / "a.b (1).geojson.gz", maps),
        "ASAP": read_asap(tmp_path / "out" / "a.b (1)_lesions.xml").tumour.bounds,
        "CSV": in_table(tmp_path / "out" / "a.b (1)_lesions.csv"),
    }
    gap = np.maximum(np.array(maps.stride_px0) - maps.footprint_px0, 0)  # nobody knows what lies between tiles
    allowed = np.tile(np.array(maps.footprint_px0) / 2 + gap, 2)
    for where, box in found.items():
        off = np.abs(np.array(box) - truth.bounds)
        slack = np.tile(s.view.px0_per_px, 2) if where == "PNG" else 1.01  # corners are whole pixels
        assert (off <= allowed + slack).all(), (where, off, allowed)


def test_the_box_would_be_found_elsewhere_were_the_offset_wrong(tmp_path: Path) -> None:
    """The test above can fail: a bounds offset that is not subtracted is more than half a tile."""
    s = scene(**SCENES["bounds"])
    truth = planted_box(s)
    maps = maps_of(s, tile_scores(s, truth))
    write_package(tmp_path / "out", maps, Material(), formats=("geojson",))
    box = in_geojson(
        tmp_path / "out" / "a.b (1).geojson.gz", maps_of(s, maps.score, bounds=s.bounds._replace(x=0, y=0))
    )
    assert (np.abs(np.array(box) - truth.bounds) > max(maps.footprint_px0) / 2 + 1).all()
