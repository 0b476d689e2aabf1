"""A package is complete and matches its scores, or is not handed over."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely

from tests.results.planted import content_of, drawn, maps_of, of_grid, planted_box, tile_scores
from tests.results.scenes import SCENES, scene
from wsi_ips.errors import HandoffError
from wsi_ips.results import lesion_files, ome_tiff, qupath_geojson
from wsi_ips.results.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.handoff_package import Material, stored_package, write_package
from wsi_ips.results.lesions import find_lesions


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
