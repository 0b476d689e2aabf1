"""What a manifest may look like, and what is said of one that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wsi_ips.errors import ManifestError
from wsi_ips.geometry import Scale
from wsi_ips.manifest.manifest_csv import read_manifest
from wsi_ips.manifest.slide_record import SlideRecord


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def records(folder: Path, text: str | bytes, **options: str) -> tuple[SlideRecord, ...]:
    return read_manifest(written(folder, text), **options).records


def complaint(folder: Path, text: str | bytes, **options: str) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(written(folder, text), **options)
    return str(caught.value)


def test_all_columns_arrive_with_their_types(tmp_path: Path) -> None:
    first, second = records(
        tmp_path,
        "slide_id,path,label,patient_id,split,mpp,annotation,stain batch\n"
        'a b,"slides/with, comma.svs",tumor,007,train,"0.25,0.26",ann/a.xml,9\n'
        "b,/data/b.ndpi,,,,0.5,,\n",
    )
    assert first == SlideRecord(
        slide_id="a b",
        path=tmp_path / "slides" / "with, comma.svs",
        label="tumor",
        patient_id="007",
        split="train",
        mpp=Scale(0.25, 0.26),
        annotation=tmp_path / "ann" / "a.xml",
    )
    assert second == SlideRecord(slide_id="b", path=Path("/data/b.ndpi"), mpp=Scale(0.5, 0.5))
    assert isinstance(first.mpp, Scale)


def test_paths_are_relative_to_the_manifest_and_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cohort").mkdir()
    written(tmp_path / "cohort", "slide_id,path\na,slides/a.svs\n")
    monkeypatch.chdir(tmp_path)
    (record,) = read_manifest(Path("cohort/manifest.csv")).records
    assert record.path == tmp_path / "cohort" / "slides" / "a.svs"


def test_numbers_stay_text(tmp_path: Path) -> None:
    first, second = records(tmp_path, "slide_id,path,label,patient_id\n0012,a.svs,0,1e5\n12,b.svs,1,NA\n")
    assert [(r.slide_id, r.label, r.patient_id) for r in (first, second)] == [("0012", "0", "1e5"), ("12", "1", "NA")]


PLAIN = "slide_id,path,label,mpp\nmärz,a.svs,tumor,0.25\nb,b.svs,,\n"


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.encode("utf-8-sig"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        ("sep=;\n" + PLAIN.replace(",", ";")).replace("\n", "\r\n").encode("utf-8-sig"),
        PLAIN.replace("\n", ",,\n").encode(),
        PLAIN.replace("b,b.svs", " b , b.svs ").encode(),
        PLAIN.replace("\nb", "\n\n,,,\nb").encode() + b"\n\n",
        PLAIN.replace("b,b.svs,,", "b,b.svs").encode(),
        re.sub(r"([^,\n]+)", r'"\1"', PLAIN).encode(),
        PLAIN.rstrip("\n").encode(),
    ],
    ids=[
        "byte order mark",
        "Windows lines",
        "old Mac lines",
        "semicolons",
        "tabs",
        "Excel with sep=",
        "empty columns",
        "blanks",
        "empty rows",
        "short row",
        "quotes",
        "no last line end",
    ],
)
def test_what_spreadsheets_save_is_read(tmp_path: Path, data: bytes) -> None:
    first, second = records(tmp_path, data)
    assert (first.slide_id, first.label, first.mpp) == ("märz", "tumor", Scale(0.25, 0.25))
    assert (second.slide_id, second.path, second.label, second.mpp) == ("b", tmp_path / "b.svs", None, None)


@pytest.mark.parametrize(
    "data",
    [PLAIN.encode("cp1252"), PLAIN.encode("utf-16"), PLAIN.replace("ä", "a").encode("utf-16-le"), b"PK\x03\x04abc"],
    ids=["ANSI", "UTF-16", "UTF-16 without a mark", "workbook"],
)
def test_other_files_are_refused_with_the_way_out(tmp_path: Path, data: bytes) -> None:
    assert "save it as `CSV UTF-8`" in complaint(tmp_path, data)


def test_a_missing_file_and_an_empty_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv: cannot be read"):
        read_manifest(tmp_path / "none.csv")
    assert "empty; the first row of a table names its columns" in complaint(tmp_path, "")
    assert "add one row per slide" in complaint(tmp_path, "slide_id,path\n")
    assert "quotation mark" in complaint(tmp_path, 'slide_id,path\n"a,b.svs\n')


def test_every_problem_is_told_at_once_with_row_column_and_remedy(tmp_path: Path) -> None:
    text = complaint(
        tmp_path,
        "slide_id,path,split,mpp,patient_id\n"
        "a,a.svs,train,,p1\n"
        "\n"
        "b/c,b.svs,,,\n"
        ",c.svs,,,\n"
        "d,,training,about 0.25,\n"
        "a,e.svs,test,,p1\n"
        "f,slides\\f.svs,,\n",
    )
    lines = [line.strip() for line in text.splitlines()[1:]]
    assert [line.split(":")[0] for line in lines] == [
        "row 4, column `slide_id`",
        "row 5, column `slide_id`",
        "row 6, column `mpp`",
        "row 6, column `path`",
        "row 6, column `split`",
        "row 7, column `patient_id`",
        "row 7, column `slide_id`",
        "row 8, column `path`",
    ]
    remedies = ["use letters", "fill it in", "write µm", "fill it in", "write train", "put all", "give each", "with /"]
    assert all(remedy in line for remedy, line in zip(remedies, lines, strict=True))


def test_a_quoted_line_end_does_not_shift_the_rows(tmp_path: Path) -> None:
    assert "row 3, column `path`" in complaint(tmp_path, 'slide_id,path,note\na,a.svs,"two\nlines"\nb,,\n')


def test_a_long_list_of_problems_is_cut(tmp_path: Path) -> None:
    text = complaint(tmp_path, "slide_id,path\n" + "".join(f"s{n},\n" for n in range(50)))
    assert "row 21, column `path`" in text
    assert "row 22" not in text
    assert text.endswith("and 30 more")


def test_cells_beyond_the_header_are_never_shifted_into_other_columns(tmp_path: Path) -> None:
    """pandas would take `a` for the row's name and `a.svs` for the slide_id."""
    text = complaint(tmp_path, "slide_id,path,mpp\na,a.svs,0.25,0.26\nb,b.svs,0.5,0.5\n")
    assert "row 2: 4 cells where the header has 3; put a text that holds the separator into quotation marks" in text
    assert "row 3" in text


@pytest.mark.parametrize(
    ("cell", "scale"),
    [
        ("0.25", (0.25, 0.25)),
        ("0.25,0.26", (0.25, 0.26)),
        (" 0.25 ; 0.26 ", (0.25, 0.26)),
        ("1", (1, 1)),
        (".5", (0.5, 0.5)),
    ],
)
def test_scales(tmp_path: Path, cell: str, scale: tuple[float, float]) -> None:
    (record,) = records(tmp_path, f'slide_id,path,mpp\na,a.svs,"{cell}"\n')
    assert record.mpp == scale


@pytest.mark.parametrize("cell", ["0,25", "1,25", "0", "-0.25", "nan", "inf", "250", "0.25 um", "0.2,0.2,0.2", "0.25,"])
def test_no_scales(tmp_path: Path, cell: str) -> None:
    text = complaint(tmp_path, f'slide_id,path,mpp\na,a.svs,"{cell}"\n')
    assert f"row 2, column `mpp`: {cell!r} " in text
    assert "; write " in text


def test_a_decimal_comma_is_not_taken_for_two_axes(tmp_path: Path) -> None:
    assert "decimal comma" in complaint(tmp_path, "slide_id;path;mpp\na;a.svs;1,25\n")


@pytest.mark.parametrize(
    "name",
    [
        *("a/b", "..", ".hidden", "a\\b", "a:b", "a\tb", "__a", "a.", "a" * 121, "é" * 61, "a?"),
        *("CON", "nul", "Com1", "lpt³.x", "aux .tif", "CONIN$"),
        *("=1+1", "@a", "-2+3", "+a", "\uff1d1"),
        *("a\u202eb", "a\u200bb", "a\ufeffb", "a\u00adb", "a\u2066b", "\u3164a"),
    ],
)
def test_names_that_make_no_folder(tmp_path: Path, name: str) -> None:
    assert "row 2, column `slide_id`" in complaint(tmp_path, f'slide_id,path\n"{name}",a.svs\n')


@pytest.mark.parametrize(
    "name",
    ["TCGA-CR-7395-01A", "test3-DAPI-2-(387)", "😐", "a.b", "_a", "007", "a b", "a" * 120, "console", "com10", "1+1"],
)
def test_names_that_do(tmp_path: Path, name: str) -> None:
    (record,) = records(tmp_path, f"slide_id,path\n{name},a.svs\n")
    assert record.slide_id == name
    (tmp_path / record.slide_id).mkdir()


@pytest.mark.parametrize("again", ["Slide", "slide", "SLIDE"])
def test_a_name_stands_once_whatever_its_capitals(tmp_path: Path, again: str) -> None:
    text = complaint(tmp_path, f"slide_id,path\nSlide,a.svs\n\n{again},b.svs\n")
    assert f"row 4, column `slide_id`: `{again}` is already in row 2" in text


def test_one_name_in_two_spellings_of_unicode_is_one(tmp_path: Path) -> None:
    assert "is already in row 2" in complaint(tmp_path, "slide_id,path\nm\u00e4rz,a.svs\nma\u0308rz,b.svs\n")


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    head = "slide_id,path,patient_id,split\n"
    text = complaint(tmp_path, head + "a,a.svs,p,train\nb,b.svs,p,train\nc,c.svs,p,test\n")
    assert "row 4, column `patient_id`: patient `p` is in test here and in train in row 2" in text
    assert len(records(tmp_path, head + "a,a.svs,p,train\nb,b.svs,p,\nc,c.svs,,test\nd,d.svs,,train\n")) == 4


def test_a_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    text = complaint(tmp_path, "slide_id,path,split\na,x/a.svs,train\nb,x/../x/a.svs,test\n")
    assert "row 3, column `path`: file " in text
    assert "is in test here and in train in row 2" in text


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("slide,path", "column `slide_id` is missing; is it `slide`? Rename it"),
        ("Slide ID,path", "column `slide_id` is missing; is it `Slide ID`? Rename it"),
        ("slide_id,file", "column `path` is missing; add it"),
        ("slide_id,path,Label", "column `Label`: is it `label`? Rename it"),
        ("slide_id,path,patientid", "column `patientid`: is it `patient_id`? Rename it"),
        ("slide_id,path,splits", "column `splits`: is it `split`? Rename it"),
        ("slide_id,path,annotations", "column `annotations`: is it `annotation`? Rename it"),
        ("slide_id,path,label,label", "column `label` appears 2 times; keep one"),
    ],
)
def test_a_misspelt_column_is_never_ignored_in_silence(tmp_path: Path, header: str, hint: str) -> None:
    text = complaint(tmp_path, f"{header}\na,b,c,d\n")
    assert "row 1" in text
    assert hint in text
    assert f"The file has: {header.replace(',', ', ')}" in text


def test_further_columns_are_no_error(tmp_path: Path) -> None:
    text = "slide_id,path,label,labels,site,scanner,lesion_mm,\na,a.svs,x,y,1,2,3,\n"
    assert records(tmp_path, text)[0].label == "x"
    assert records(tmp_path, "slide_id,path,splits,split\na,a.svs,x,\n")[0].split is None


def test_the_recipe_may_learn_another_column(tmp_path: Path) -> None:
    text = "slide_id,path,label,er_status\na,a.svs,old,0\nb,b.svs,old,\n"
    assert [r.label for r in records(tmp_path, text, label_column="er_status")] == ["0", None]
    assert [r.label for r in records(tmp_path, text)] == ["old", "old"]
    missing = complaint(tmp_path, text, label_column="er_state")
    assert "column `er_state` is missing; is it `er_status`? Rename it" in missing
    assert records(tmp_path, "slide_id,path,split\na,a.svs,test\n", label_column="split")[0].label == "test"
