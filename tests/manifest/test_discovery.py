"""Folders that amount to a manifest."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.discovery import (
    discover,
    discover_camelyon16,
    discover_camelyon17,
    discover_folder,
    discover_slides,
)
from wsi_ips.manifest.manifest_csv import read_manifest

CAMELYON16 = [
    "training/normal/normal_001.tif",
    "training/tumor/tumor_001.tif",
    "training/tumor/tumor_010.tif",
    "training/tumor_mask/tumor_001_mask.tif",
    "training/lesion_annotations/Tumor_001.xml",
    "training/lesion_annotations/tumor_010.xml",
    "testing/images/test_001.tif",
    "testing/images/Test_002.TIF",
    "testing/images/test_049.tif",
    "testing/lesion_annotations/test_001.xml",
    "README.md",
]
REFERENCE = "test_001,Tumor,IDC,Macro\nTest_002,Normal,None,None\n"


def filled(folder: Path, names: Iterable[str], reference: str | None = None) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if reference is not None:
        (folder / "testing" / "reference.csv").write_text(reference)
    return folder


def test_camelyon16_becomes_its_official_split(tmp_path: Path) -> None:
    filled(tmp_path, CAMELYON16, REFERENCE)
    found = discover_camelyon16(tmp_path)
    notes = tmp_path / "training" / "lesion_annotations"
    assert found.table.to_numpy().tolist() == [
        ["normal_001", tmp_path / CAMELYON16[0], "normal", "train", None],
        ["tumor_001", tmp_path / CAMELYON16[1], "tumor", "train", notes / "Tumor_001.xml"],
        ["tumor_010", tmp_path / CAMELYON16[2], "tumor", "train", None],  # not all of its lesions are outlined
        ["Test_002", tmp_path / CAMELYON16[7], "normal", "test", None],
        ["test_001", tmp_path / CAMELYON16[6], "tumor", "test", tmp_path / CAMELYON16[9]],
    ]
    left_out = {str(file.relative_to(tmp_path)) for file in found.left_out}
    assert left_out == {CAMELYON16[3], CAMELYON16[5], CAMELYON16[8], "README.md"}


def test_a_discovered_manifest_can_be_written_anywhere_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "data", CAMELYON16, REFERENCE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifests").mkdir()
    table = discover_slides(Path("data"))
    table.to_csv("manifests/camelyon16.csv", index=False)
    records = read_manifest(Path("manifests/camelyon16.csv")).records
    assert [r.slide_id for r in records] == list(table["slide_id"])
    assert all(r.path.is_file() for r in records)
    assert sum(r.annotation is not None and r.annotation.is_file() for r in records) == 2


@pytest.mark.parametrize(
    "reference",
    [
        "name,type\n" + REFERENCE,
        REFERENCE.replace(",", ";"),
        REFERENCE.replace("\n", "\r\n"),
        "\ufeff" + REFERENCE,
        'test_001.tif,"Tumor"\ntest_002.tif,"Normal"\n',
    ],
    ids=["header", "semicolons", "Windows", "byte order mark", "quotes and endings"],
)
def test_reference_in_other_spellings(tmp_path: Path, reference: str) -> None:
    filled(tmp_path, CAMELYON16, reference)
    table = discover_camelyon16(tmp_path).table.set_index("slide_id")
    assert (table.loc["test_001", "label"], table.loc["Test_002", "label"]) == ("tumor", "normal")


def test_test_slides_have_no_label_without_the_reference(tmp_path: Path) -> None:
    table = discover_camelyon16(filled(tmp_path, CAMELYON16)).table
    assert table.loc[table["split"] == "test", "label"].tolist() == [None, None]


def test_a_reference_that_misses_slides_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, CAMELYON16, "test_001,Tumor\n")
    with pytest.raises(ManifestError, match=r"reference\.csv: no row .* for Test_002; complete"):
        discover_camelyon16(tmp_path)


def test_packed_outlines_are_not_passed_over(tmp_path: Path) -> None:
    filled(tmp_path, [*CAMELYON16, "training/lesion_annotations.zip"], REFERENCE)
    assert len(discover_camelyon16(tmp_path).table) == 5  # unpacked beside
    filled(tmp_path / "packed", ["training/tumor/tumor_001.tif", "training/lesion_annotations.zip"])
    with pytest.raises(ManifestError, match=r"lesion_annotations\.zip: unpack"):
        discover_camelyon16(tmp_path / "packed")


def test_two_outlines_of_one_slide_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, [*CAMELYON16, "training/corrected/tumor_001.xml"], REFERENCE)
    with pytest.raises(ManifestError, match="two annotations"):
        discover_camelyon16(tmp_path)


def test_linked_folders_are_searched_and_rings_end(tmp_path: Path) -> None:
    disk = filled(tmp_path / "disk", ["a.tif", "b.tif"])
    cohort = tmp_path / "cohort"
    (cohort / "training").mkdir(parents=True)
    (cohort / "training" / "normal").symlink_to(disk, target_is_directory=True)
    (disk / "ring").symlink_to(cohort, target_is_directory=True)
    assert discover_camelyon16(cohort).table["slide_id"].tolist() == ["a", "b"]


def test_any_folder_lists_what_it_does_not_take(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["b/2.SVS", "a/1 (x).ndpi", "m/3.mrxs", "m/3/Data0001.dat", "m/3/Slidedat.ini", "a/1.qpdata", "LIESMICH"]
    filled(tmp_path, [*names, ".DS_Store", "a/._1 (x).ndpi", ".cache/4.svs"])
    found = discover_folder(tmp_path)
    assert dict(zip(found.table["slide_id"], found.table["path"], strict=True)) == {
        "1 (x)": tmp_path / "a" / "1 (x).ndpi",
        "2": tmp_path / "b" / "2.SVS",
        "3": tmp_path / "m" / "3.mrxs",
    }
    assert [f.name for f in found.left_out] == ["LIESMICH", "1.qpdata"]
    with caplog.at_level(logging.WARNING):
        assert len(discover_slides(tmp_path)) == 3
    assert "1 no ending, 1 .qpdata (LIESMICH, a/1.qpdata)" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no slide in it; known endings: .*svs"),
        (["notes.txt"], "no slide in it"),
        (["x/a.svs", "y/A.tif"], "would both be slide `[aA]`"),
        (["a:b.svs"], "a:b.svs cannot be a folder name"),
    ],
)
def test_folders_that_make_no_manifest(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        discover_slides(filled(tmp_path, names))


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        discover_slides(tmp_path / "none")


def test_real_slides_are_found(real_data: Path) -> None:
    found = discover_folder(real_data / "slides")
    assert {"CMU-1-Small-Region", "test3-DAPI-2-(387)", "😐"} <= set(found.table["slide_id"])
    assert [f.name for f in found.left_out] == ["demo_tumor_slide.xml"]


def test_camelyon16_in_the_form_of_aws(tmp_path: Path) -> None:
    names = ["normal_001", "tumor_001", "tumor_010", "test_001", "test_002", "test_049"]
    filled(
        tmp_path,
        [f"images/{name}.tif" for name in names]
        + ["annotations/tumor_001.xml", "annotations/tumor_010.xml", "masks/tumor_001_mask.tif", "license.txt"],
    )
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "reference.csv").write_text(REFERENCE)
    table = discover(tmp_path).table.set_index("slide_id")
    assert table["split"].to_dict() == {
        "normal_001": "train",
        "tumor_001": "train",
        "tumor_010": "train",
        "test_001": "test",
        "test_002": "test",
    }
    assert table["label"].to_dict() == {
        "normal_001": "normal",
        "tumor_001": "tumor",
        "tumor_010": "tumor",
        "test_001": "tumor",
        "test_002": "normal",
    }
    assert table.loc["tumor_001", "annotation"] == tmp_path / "annotations" / "tumor_001.xml"
    assert table.loc["tumor_010", "annotation"] is None


STAGES = (
    "patient,stage\npatient_004.zip,pN1\npatient_004_node_0.tif,negative\npatient_004_node_4.tif,macro\n"
    "patient_021.zip,pN0(i+)\npatient_021_node_1.tif,itc\n"
)
CAMELYON17 = ["patient_004_node_0", "patient_004_node_4", "patient_021_node_1", "patient_145_node_2"]


@pytest.mark.parametrize("is_flat", [False, True], ids=["by centre", "as on AWS"])
def test_camelyon17_has_patients_centres_and_stages(tmp_path: Path, is_flat: bool) -> None:
    centres = ["training/center_0", "training/center_0", "training/center_1", "testing/center_2"]
    places = ["images"] * 4 if is_flat else centres
    filled(tmp_path, [f"{place}/{name}.tif" for place, name in zip(places, CAMELYON17, strict=True)])
    filled(tmp_path, ["annotations/patient_004_node_4.xml", "masks/patient_004_node_4_mask.tif"])
    (tmp_path / ("stages.csv" if is_flat else "training/stage_labels.csv")).write_text(STAGES)
    found = discover(tmp_path)
    table = found.table.set_index("slide_id").loc[CAMELYON17]
    assert table["label"].tolist() == ["negative", "macro", "itc", None]
    assert table["split"].tolist() == ["train", "train", "train", None]
    assert table["patient_id"].tolist() == ["patient_004", "patient_004", "patient_021", "patient_145"]
    assert table["center"].tolist() == ["0", "0", "1", "2"]
    assert table["stage"].tolist() == ["pN1", "pN1", "pN0(i+)", None]
    assert table["annotation"].notna().tolist() == [False, True, False, False]
    assert [file.name for file in found.left_out] == ["patient_004_node_4_mask.tif"]


def test_camelyon17_that_lacks_something_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, ["training/center_0/patient_004_node_0.tif", "training/center_0/patient_005.zip"])
    with pytest.raises(ManifestError, match=r"patient_005\.zip: unpack"):
        discover_camelyon17(tmp_path)
    (tmp_path / "training/center_0/patient_005.zip").unlink()
    with pytest.raises(ManifestError, match=r"no stage_labels\.csv"):
        discover(tmp_path)
    (tmp_path / "stages.csv").write_text("patient_004.zip,pN0\n")
    with pytest.raises(ManifestError, match=r"no row .* for patient_004_node_0"):
        discover(tmp_path)


def test_files_of_a_registered_reader_are_found(tmp_path, monkeypatch):
    from wsi_ips.manifest import folder_files
    from wsi_ips.slides.readers import READERS, ReaderEntry

    (tmp_path / "a.own").write_bytes(b"x")
    with pytest.raises(ManifestError, match="no slide in it"):
        discover_slides(tmp_path)
    entry = ReaderEntry("own", "wsi_ips.slides.readers:open_auto", "a test's", suffixes=(".own",))
    monkeypatch.setitem(READERS._entries, "own", entry)
    folder_files.slide_suffixes.cache_clear()
    assert list(discover_slides(tmp_path)["slide_id"]) == ["a"]
    monkeypatch.undo()
    folder_files.slide_suffixes.cache_clear()
