"""Checking slides before any work: a row for every slide, every file named, copies, scales, expected work."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.pyramids import gradient_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.cli import app
from wsi_ips.config import TilesSection
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.manifest.folder_files import Unlisted, unlisted_files
from wsi_ips.pipeline import check_slides
from wsi_ips.pipeline.check_slides import (
    TISSUE_SHARE,
    CheckedSlide,
    CheckReport,
    check_cohort,
    expected_tiles,
    find_target,
)
from wsi_ips.slides.base import SlideInfo


def invoke(*arguments: object, columns: int = 80):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good, copied, unusable and stray files."""
    slides = tmp_path / "slides"
    slides.mkdir()
    write_pyramid(slides / "good.tif", gradient_pyramid())
    shutil.copy(slides / "good.tif", slides / "copy.tif")
    write_jpeg_pyramid(slides / "direct.tif", gradient_pyramid(), mpp=(0.5, 0.5))
    (slides / "broken.svs").write_bytes(b"II*\0" + bytes(200))
    (slides / "stray.svs").write_text("stray")
    (slides / "notes.txt").write_text("notes")
    rows = [
        ["good", "good.tif", ""],
        ["copy", "copy.tif", "0.5"],
        ["direct", "direct.tif", ""],
        ["broken", "broken.svs", ""],
    ]
    with (slides / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["slide_id", "path", "mpp"], *rows, ["gone", "gone.svs", ""]])
    return slides


def test_every_slide_is_a_row_and_every_file_is_named(folder):
    result = invoke("check", folder / "manifest.csv")
    text = " ".join(result.output.split())
    assert result.exit_code == 3
    assert "5 slides: 3 usable, 2 not" in text
    assert "broken: no reader opens it" in text
    assert "gone.svs: no such file" in text
    assert "copies of one slide: good, copy" in text
    assert f"in no row, but named like a slide: {folder / 'stray.svs'}" in text
    assert "1 other files in no row: 1 .txt (notes.txt)" in text
    assert "copy: the manifest says 0.5 µm/px, the file 0.25" in text
    assert "30% of the area is tissue" in text
    assert "Traceback" not in text


def test_the_table_fits_80_columns(folder):
    lines = invoke("check", folder / "manifest.csv").output.splitlines()
    table = lines[1 : next(i for i, line in enumerate(lines) if "µm/px  █" in line)]
    assert max(map(len, table)) <= 80
    assert {line.split()[0] for line in table[1:]} == {"good", "copy", "direct", "broken", "gone"}


def test_json_holds_every_row_and_the_figures(folder):
    result = invoke("check", folder / "manifest.csv", "--json")
    report = json.loads(result.output)
    assert result.exit_code == 3
    assert report["usable"] == 3
    assert report["copies"] == [["good", "copy"]]
    assert [Path(p).name for p in report["unlisted_slides"]] == ["stray.svs"]
    assert report["scales"] == [
        {"mpp_from": pytest.approx(0.25, rel=1e-3), "mpp_to": pytest.approx(0.25, rel=1e-3), "slides": 1},
        {"mpp_from": 0.5, "mpp_to": 0.5, "slides": 2},
    ]
    assert report["mpp_sources"]["manifest"] == 1
    rows = report["rows"]
    assert [row["slide_id"] for row in rows] == ["good", "copy", "direct", "broken", "gone"]
    assert rows[0]["content"] == rows[1]["content"] != ""
    assert (rows[0]["size_px0"], rows[3]["size_px0"]) == ([1031, 773], None)
    assert report["machine"] == []


def test_a_slide_file_is_checked_alone(folder):
    result = invoke("check", folder / "good.tif")
    assert result.exit_code == 0, result.output
    assert "1 slides: 1 usable" in result.output
    assert "in no row" not in result.output
    assert invoke("check", folder / "gone.svs").exit_code == 3


def test_a_recipe_is_checked_against_the_machine_too(folder):
    (folder / "recipe.yaml").write_text("output: manifest.csv\nmanifest: manifest.csv\ntiles: {patch_px: 64}\n")
    result = invoke("check", folder / "recipe.yaml")
    assert result.exit_code == 2
    assert "manifest.csv is a file" in " ".join(result.output.split())
    assert "5 slides: 3 usable" in result.output


def test_a_good_cohort_exits_0_and_a_bad_manifest_2(folder, tmp_path):
    only = tmp_path / "good"
    only.mkdir()
    shutil.copy(folder / "good.tif", only)
    assert invoke("check", only).exit_code == 0
    assert invoke("check", tmp_path / "none.csv").exit_code == 2
    assert invoke("check", folder / "manifest.csv", "--folder", tmp_path / "none").exit_code == 2


def test_a_recipe_says_what_its_scale_makes_of_the_slides(folder):
    (folder / "recipe.yaml").write_text("output: out\nmanifest: manifest.csv\ntiles: {mpp: 0.3, patch_px: 64}\n")
    report = check_cohort(find_target(folder / "recipe.yaml"))
    problems = {row.slide_id: row.problem for row in report.rows}
    assert not problems["good"]
    assert "coarser than the requested 0.3" in problems["direct"]  # 0.5 µm/px
    assert report.tiling.patch_px == 64


def test_another_folder_is_searched_to_the_bottom(folder, tmp_path):
    deep = tmp_path / "archive" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "forgotten.ndpi").touch()
    target = find_target(folder / "manifest.csv", folder=tmp_path / "archive")
    assert [path.name for path in check_cohort(target).unlisted.slides] == ["forgotten.ndpi"]


def test_parts_of_a_slide_are_not_unlisted(tmp_path):
    from wsi_ips.manifest.slide_record import SlideRecord

    (tmp_path / "a").mkdir()
    for name in ("a.mrxs", "a/Data0000.dat", "b.vms", "b-1.jpg", "stray.jpg", "c.svs"):
        (tmp_path / name).touch()
    (tmp_path / "b.vms").write_text("[Virtual Microscope Specimen]\nImageFile=b-1.jpg\nOther=5\n")
    records = [SlideRecord(slide_id=n, path=tmp_path / n) for n in ("a.mrxs", "b.vms")]
    unlisted = unlisted_files([tmp_path], records, deep=True)
    assert [p.name for p in unlisted.slides] == ["c.svs"]
    assert [p.name for p in unlisted.others] == ["stray.jpg"]


def test_files_of_one_real_dicom_series_belong_together(real_data, tmp_path):
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        shutil.copy(real_data / "slides" / "dicom_boxes" / name, tmp_path)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("slide_id,path\nboxes,boxes_0.dcm\n")
    assert check_cohort(find_target(manifest)).unlisted.slides == ()
    both = check_cohort(find_target(tmp_path))
    assert both.copies == (("boxes_0", "boxes_1"),)


def test_every_real_and_every_malformed_file_ends_in_a_row(real_data, tmp_path):
    files = [p for f in ("slides", "malformed") for p in sorted((real_data / f).rglob("*")) if p.is_file()]
    lines = [f'{n:02d},"{path}"' for n, path in enumerate(files)]
    (tmp_path / "manifest.csv").write_text("slide_id,path\n" + "\n".join(lines) + "\n", encoding="utf-8")
    rows = check_cohort(find_target(tmp_path / "manifest.csv")).rows
    assert len(rows) == len(files)
    bad = [Path(row.path) for row in rows if row.problem]
    assert {p for p in files if p.is_relative_to(real_data / "malformed")} <= set(bad)
    assert real_data / "slides" / "CMU-1-Small-Region.svs" not in bad


def test_expected_tiles_are_those_of_the_grid():
    info = SlideInfo(
        "s",
        "openslide",
        (Size(4000, 3000), Size(1000, 750)),
        Scale(0.25, 0.25),
        "p",
        Box(0, 0, 4000, 3000),
        {},
        "openslide",
    )
    settings = TilesSection(mpp=0.5, patch_px=250)
    assert expected_tiles(info, settings) == round(8 * 6 * TISSUE_SHARE)
    good, unusable = CheckedSlide("s", tiles=14), CheckedSlide("t", tiles=14, problem="damaged")
    assert CheckReport((good, good, unusable), (), Unlisted(), settings).tiles == 28


def test_a_fault_of_a_reader_is_a_row(folder, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in a library")

    monkeypatch.setattr(check_slides, "open_slide", broken)
    report = check_cohort(find_target(folder / "manifest.csv"))
    assert all(row.problem for row in report.rows)
    assert "ZeroDivisionError: in a library" in report.rows[0].problem
