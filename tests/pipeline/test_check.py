"""Before any work: every slide a row, every file named, copies and scales seen, work with its basis."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.pyramids import gradient_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.cli import app
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.pipeline.checks.check import CheckSettings, check_cohort, find_target
from wsi_ips.pipeline.checks.estimate import OPENSLIDE_FACTOR, estimate, slide_work
from wsi_ips.pipeline.checks.unknown import unknown_files
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
    assert "one and the same: good, copy" in text
    assert f"in no row, but named like a slide: {folder / 'stray.svs'}" in text
    assert "1 other files in no row: 1 .txt (notes.txt)" in text
    assert "copy: the manifest says 0.5 µm/px, the file 0.25" in text
    assert "taken: tissue on 30%" in text
    assert "Traceback" not in text


def test_the_table_fits_80_columns(folder):
    lines = invoke("check", folder / "manifest.csv").output.splitlines()
    table = lines[1 : next(i for i, line in enumerate(lines) if "µm/px  █" in line)]
    assert max(map(len, table)) <= 80
    assert {line.split()[0] for line in table[1:]} == {"good", "copy", "direct", "broken", "gone"}


def test_json_and_csv_hold_the_same_rows(folder, tmp_path):
    result = invoke("check", folder / "manifest.csv", "--json", "--csv", tmp_path / "rows.csv")
    report = json.loads(result.output)
    assert result.exit_code == 3
    assert report["usable"] == 3
    assert report["copies"] == [["good", "copy"]]
    assert [Path(p).name for p in report["unknown_slides"]] == ["stray.svs"]
    assert report["scales"] == [
        {"mpp_from": pytest.approx(0.25, rel=1e-3), "mpp_to": pytest.approx(0.25, rel=1e-3), "slides": 1},
        {"mpp_from": 0.5, "mpp_to": 0.5, "slides": 2},
    ]
    assert report["mpp_sources"]["manifest"] == 1
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == [row["slide_id"] for row in report["rows"]]
    assert rows[0]["content"] == rows[1]["content"] != ""


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
    assert report.settings.patch_px == 64


def test_another_folder_is_searched_to_the_bottom(folder, tmp_path):
    deep = tmp_path / "archive" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "forgotten.ndpi").touch()
    target = find_target(folder / "manifest.csv", folder=tmp_path / "archive")
    assert [path.name for path in check_cohort(target).unknown.slides] == ["forgotten.ndpi"]


def test_parts_of_a_slide_are_not_unknown(tmp_path):
    from wsi_ips.manifest import SlideRecord

    (tmp_path / "a").mkdir()
    for name in ("a.mrxs", "a/Data0000.dat", "b.vms", "b-1.jpg", "stray.jpg", "c.svs"):
        (tmp_path / name).touch()
    (tmp_path / "b.vms").write_text("[Virtual Microscope Specimen]\nImageFile=b-1.jpg\nOther=5\n")
    records = [SlideRecord(slide_id=n, path=tmp_path / n) for n in ("a.mrxs", "b.vms")]
    unknown = unknown_files([tmp_path], records, deep=True)
    assert [p.name for p in unknown.slides] == ["c.svs"]
    assert [p.name for p in unknown.others] == ["stray.jpg"]


def test_files_of_one_real_dicom_series_belong_together(real_data, tmp_path):
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        shutil.copy(real_data / "slides" / "dicom_boxes" / name, tmp_path)
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("slide_id,path\nboxes,boxes_0.dcm\n")
    assert check_cohort(find_target(manifest)).unknown.slides == ()
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


def test_expected_work_is_that_of_the_grid(tmp_path):
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
    work = slide_work(info, target_mpp=0.5, patch_px=250, stride_px=250, file_bytes=10_000, tissue_share=0.5)
    assert work.grid_tiles == 8 * 6
    assert work.tiles == 24
    assert work.decoded_bytes == 24 * 500 * 500 * 3
    assert work.read_bytes == round(10_000 * 0.5 * 12_000_000 / 12_750_000)
    dense = slide_work(info, target_mpp=0.5, patch_px=250, stride_px=125, file_bytes=10_000, tissue_share=0.5)
    assert dense.read_bytes == work.read_bytes  # neighbours come from the cache
    total = estimate([work, work], mpx_per_s=10.0, threads=1)
    assert total.hours == pytest.approx(2 * 6e6 * OPENSLIDE_FACTOR / 10e6 / 3600)
    assert estimate([work], mpx_per_s=10.0, threads=2).hours == pytest.approx(total.hours / 2 / 1.6)


def test_a_fault_of_a_reader_is_a_row(folder, monkeypatch):
    import wsi_ips.pipeline.checks.check as module

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("in a library")

    monkeypatch.setattr(module, "open_slide", broken)
    report = check_cohort(find_target(folder / "manifest.csv"))
    assert all(row.problem for row in report.rows)
    assert "ZeroDivisionError: in a library" in report.rows[0].problem


def test_settings_without_a_recipe():
    assert (CheckSettings().target_mpp, CheckSettings().must_reach) == (0.5, False)
    assert np.isfinite(CheckSettings().tissue_share)
