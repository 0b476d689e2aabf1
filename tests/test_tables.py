"""Tables: every kind that the package reads, written in every way spreadsheets and scripts write them."""

from __future__ import annotations

import csv
import re
import string
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wsi_ips.errors import ManifestError, WsiIpsError
from wsi_ips.labels import Task, matched
from wsi_ips.manifest.discovery import discover
from wsi_ips.manifest.manifest_csv import read_manifest
from wsi_ips.manifest.splits import read_splits
from wsi_ips.pipeline.external_predictions import TableQuestion, evaluate_files, read_detections
from wsi_ips.pipeline.run_viewer import _predictions
from wsi_ips.tables import read_table, table_text
from wsi_ips.tiles.interop.scored_tiles import read_scored

Rows = list[list[str]]
IDS = ["NA", "0012", "1e5", "None", "ab c", "nan"]


def _manifest(path: Path) -> Any:
    records = read_manifest(path).records
    return [(r.slide_id, matched(r.label or "", ("normal", "tumor")), r.split, r.patient_id) for r in records]


def _predicted(path: Path) -> Any:
    found = evaluate_files(TableQuestion("tumor"), predictions=path).slides
    assert found is not None
    return {name: (value.value, value.low) for name, value in found.metrics.items()}


def _scored(path: Path) -> Any:
    found = read_scored(path, slide_names=["NA"])
    return found.corners_px0.tolist(), {name: values.tolist() for name, values in found.columns.items()}


def _stages(path: Path) -> Any:
    for name in IDS[:4]:
        (path.parent / "testing" / f"{name}.tif").parent.mkdir(exist_ok=True)
        (path.parent / "testing" / f"{name}.tif").touch()
    return discover(path.parent).table[["slide_id", "label"]].to_numpy().tolist()


def _detected(path: Path) -> Any:
    found = read_detections(path)
    return found.x_px0.tolist(), found.y_px0.tolist(), found.score.tolist()


LABELS, PARTS = ["tumor", "normal"] * 3, ["train", "val", "test", "test", "test", "test"]
TABLES: dict[str, tuple[str, Callable[[Path], Any], Rows]] = {
    "manifest": (
        "manifest.csv",
        _manifest,
        [["slide_id", "path", "label", "split", "patient_id"]]
        + [[n, f"{n}.svs", label, part, f"0{n}"] for n, label, part in zip(IDS, LABELS, PARTS, strict=True)],
    ),
    "splits": (
        "splits.csv",
        lambda path: read_splits(path).folds,
        [["slide_id", "split"], *map(list, zip(IDS, PARTS, strict=True))],
    ),
    "predictions": (
        "predictions.csv",
        _predicted,
        [["slide_id", "label", "split", "probability", "note"]]
        + [[n, label, part, f"0.{k}5", "x"] for k, (n, label, part) in enumerate(zip(IDS, LABELS, PARTS, strict=True))],
    ),
    "own predictions": (
        "predictions.csv",
        lambda path: {n: (p, word.lower()) for n, (p, word) in _predictions(path, "probability_tumor").items()},
        [["slide_id", "probability_tumor", "predicted"], *([n, "0.5", p] for n, p in zip(IDS, LABELS, strict=True))],
    ),
    "detections": (
        "NA.csv",
        _detected,
        [["probability", "x", "y"], ["0.9", "10", "20"], ["1e-3", "0012", "7.5"], ["1", "5", "-3"]],
    ),
    "scores": (
        "scores.csv",
        _scored,
        [
            ["slide_id", "x", "y", "p", "name"],
            *(["NA", "0", "0", "0.1", "a"], ["NA", "64", "0", "1e-3", "b"], ["0012", "0", "0", "0.3", "c"]),
        ],
    ),
    "stage labels": (
        "reference.csv",
        _stages,
        [
            ["image", "type", "kind"],
            *([n, label, "None"] for n, label in zip(IDS[:4], ["Tumor", "Normal"] * 2, strict=True)),
        ],
    ),
}


def joined(rows: Rows, separator: str = ",", *, blank: str = "", end: str = "\n", quoted: bool = False) -> str:
    cell = '"{}"' if quoted else "{}"
    return "".join(f"{separator}{blank}".join(cell.format(text) for text in row) + end for row in rows)


def each(change: Callable[[str], str]) -> Callable[[Rows], str]:
    """Change every cell below the header."""
    return lambda rows: joined([rows[0], *([change(text) for text in row] for row in rows[1:])])


WORDS = re.compile("(tumor|normal|train|val|test)$", re.IGNORECASE)
VARIANTS: dict[str, Callable[[Rows], str | bytes]] = {
    "commas": joined,
    "semicolons": lambda rows: joined(rows, ";"),
    "tabs": lambda rows: joined(rows, "\t"),
    "byte order mark": lambda rows: joined(rows).encode("utf-8-sig"),
    "byte order mark, semicolons, Windows": lambda rows: joined(rows, ";", end="\r\n").encode("utf-8-sig"),
    "Windows lines": lambda rows: joined(rows, end="\r\n"),
    "old Mac lines": lambda rows: joined(rows, end="\r"),
    "no last line end": lambda rows: joined(rows).rstrip("\n"),
    "sep=;": lambda rows: "sep=;\n" + joined(rows, ";"),
    "sep=,": lambda rows: "SEP=,\r\n" + joined(rows, end="\r\n"),
    "quotes": lambda rows: joined(rows, quoted=True),
    "quotes and semicolons": lambda rows: joined(rows, ";", quoted=True),
    "quotes after blanks": lambda rows: joined(rows, blank=" ", quoted=True),
    "blanks before": lambda rows: joined(rows, blank="  "),
    "blanks behind": lambda rows: joined([[f"{text} " for text in row] for row in rows]),
    "tabs around": each(lambda text: f"\t{text}\t"),
    "no-break spaces": each(lambda text: f"\u00a0{text}\u00a0"),
    "blanks within quotes": lambda rows: joined([[f" {text} " for text in row] for row in rows], quoted=True),
    "empty rows": lambda rows: joined(rows).replace("\n", "\n\n"),
    "rows of separators": lambda rows: joined(rows).replace("\n", "\n,,\n"),
    "empty rows first": lambda rows: "\n\n" + joined(rows),
    "empty rows last": lambda rows: joined(rows) + "\n , \n\n",
    "empty columns last": lambda rows: joined([[*row, "", ""] for row in rows]),
    "capitals": each(lambda text: text.capitalize() if WORDS.match(text) else text),
    "all capitals": each(lambda text: text.upper() if WORDS.match(text) else text),
    "capitals and blanks": each(lambda text: f" {text.title()}  " if WORDS.match(text) else text),
    "columns in another order": lambda rows: joined([row[::-1] for row in rows]),
    "a pandas index": lambda rows: joined([[str(n - 1) if n else "", *row] for n, row in enumerate(rows)]),
    "a column with line ends": lambda rows: joined(
        [[*row, f'"a\n{n}"' if n else "remark"] for n, row in enumerate(rows)]
    ),
    "a column with separators": lambda rows: joined(
        [[*row, '"a,b;c\td"' if n else "memo"] for n, row in enumerate(rows)]
    ),
    "a doubled quote": lambda rows: joined([[*row, '"a ""b"""' if n else "memo"] for n, row in enumerate(rows)]),
    "guarded against formulas": each(lambda text: f"'{text}" if text.startswith("-") else text),
}
NEEDS_HEADER = ("columns in another order", "a pandas index")


def write(folder: Path, kind: str, data: str | bytes) -> Path:
    path = folder / TABLES[kind][0]
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", TABLES)
def test_every_table_is_read_in_every_way_it_is_written(tmp_path: Path, kind: str, variant: str) -> None:
    if kind == "stage labels" and variant in NEEDS_HEADER:
        pytest.skip("these tables may have no header, so their first columns are fixed")
    _, read, rows = TABLES[kind]
    plain = read(write(tmp_path, kind, joined(rows)))
    assert read(write(tmp_path, kind, VARIANTS[variant](rows))) == plain
    assert plain


@pytest.mark.parametrize("variant", VARIANTS)
def test_detections_need_no_header(tmp_path: Path, variant: str) -> None:
    if variant not in (*NEEDS_HEADER, "a column with line ends", "a column with separators", "a doubled quote"):
        _, read, rows = TABLES["detections"]
        plain = read(write(tmp_path, "detections", joined(rows)))
        assert read(write(tmp_path, "detections", VARIANTS[variant](rows[1:]))) == plain


REFUSED: dict[str, tuple[Callable[[Rows], str | bytes], str]] = {
    "empty": (lambda _: "", "empty|probability,x,y|complete the file"),
    "empty rows only": (lambda _: "\n ,\n", "empty|complete the file"),
    "a workbook": (lambda _: b"PK\x03\x04abc", "save it as `CSV UTF-8`"),
    "UTF-16": (lambda rows: joined(rows).encode("utf-16"), "not UTF-8 text"),
    "an open quotation mark": (lambda rows: joined(rows[:2]) + '"a,b\n' + joined(rows[2:]), "row 3: not a CSV table"),
    "a column twice": (lambda rows: joined([[*row, row[0]] for row in rows]), "appears (2 times|twice)"),
    "a row with a cell too many": (lambda rows: joined([*rows, [*rows[-1], "1"]]), "row [0-9]"),
}


@pytest.mark.parametrize("damage", REFUSED)
@pytest.mark.parametrize("kind", [kind for kind in TABLES if kind not in ("own predictions", "stage labels")])
def test_what_is_no_table_is_refused_with_file_and_row(tmp_path: Path, kind: str, damage: str) -> None:
    change, says = REFUSED[damage]
    _, read, rows = TABLES[kind]
    if kind == "detections" and damage.startswith("empty"):
        assert read(write(tmp_path, kind, change(rows))) == ([], [], [])  # a slide without detections
        return
    path = write(tmp_path, kind, change(rows))
    with pytest.raises(WsiIpsError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "old", "new", "says"),
    [
        ("manifest", "train", "training", "row 2, column `split`: 'training' is not a split; write train, val or test"),
        ("splits", "test", "tset", "row 4, column `split`: 'tset' is none of train, val, test"),
        ("predictions", "val", "validation", "row 3, column `split`: 'validation' is none of train, val, test"),
        ("predictions", "slide_id,label,split", "slide_id,label,Split", "column `Split`: is it `split`"),
        ("predictions", "slide_id,label", "Slide,label", "is it `Slide`"),
        ("predictions", "tumor", "tumor\u200b", r"row 2, column `label`: 'tumor\\u200b' holds characters"),
        ("predictions", "0.25", "0,25", "row 4: 6 cells where the header has 5"),
        ("predictions", "0.25", "", "row 4 of slide 1e5"),
        ("predictions", "0012", "NA", "row 3, column `slide_id`: `NA` is already in row 2"),
        ("detections", "0.9", '"0,9"', "row 2: .*'0,9' is not a number; write it with a decimal point"),
        ("detections", "10", "nan", "row 2: "),
        ("detections", "7.5", "1_0", "row 3: "),
        ("scores", "1e-3", "high", "row 3, column `p`: 'high' is not a number"),
        ("scores", "64", "٦٤", "row 3, column `x`: .* is not a number"),
        ("scores", "NA,64", ",64", "row 3, column `slide_id`: empty"),
        ("scores", "name", "P", "two columns differ only in case"),
        ("stage labels", "Tumor", "Tumour", "complete the file"),
    ],
)
def test_an_odd_cell_is_never_dropped(tmp_path: Path, kind: str, old: str, new: str, says: str) -> None:
    _, read, rows = TABLES[kind]
    with pytest.raises(WsiIpsError, match=says):
        read(write(tmp_path, kind, joined(rows).replace(old, new, 1)))


def test_classes_are_matched_or_refused_with_the_classes() -> None:
    task = Task("label", ("normal", "Tumor", "tumor"))
    assert [task.parse(text) for text in ("Normal ", "Tumor", "tumor")] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"`TUMOR` is not a class of the recipe \(normal, Tumor, tumor\)"):
        task.parse("TUMOR")
    signs = Task("signs", ("A", "b"), "multi")
    assert [signs.parse(text) for text in ("a; B", "None", "b")] == [(True, True), (False, False), (False, True)]
    with pytest.raises(ValueError, match="`` is not a class"):
        signs.parse("a;")
    assert matched("m\u00c4rz", ["ma\u0308rz"]) == "ma\u0308rz"


FORMULAS = ["=1+1", " =1+1", "@a", "-2+3", "+x", "\uff1d1", "x\n=1", "x\r\n\t@y", "'=1", "' =1", "''-a", "-", "\n+1"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_runs_as_a_formula_and_ours_are_read_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(table_text([text, "n"], [[text, -2.5], [None, "-2.5"]]), encoding="utf-8", newline="")
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(re.search(r"^\s*[=+@\uff1d-](?![0-9.]+$)", cell, re.MULTILINE) for cell in cells), cells
    assert cells.count("-2.5") == 2
    table = read_table(path, "table", ManifestError)
    kept = text.replace("\r\n", "\n").strip()
    assert (table.columns, table.cells[0][0]) == ([kept, "n"], kept)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(FORMULAS + IDS)


@settings(max_examples=150)
@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "back.csv"
    path.write_text(table_text(["a", "b", "c"], rows), encoding="utf-8", newline="")
    wanted = [[cell.replace("\r\n", "\n").replace("\r", "\n").strip() for cell in row] for row in rows]
    assert list(read_table(path, "table", ManifestError).cells) == [row for row in wanted if any(row)]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.text(string.ascii_letters + "0123456789,;\t\"\n\r '=", max_size=200).map(str.encode)
    | st.lists(st.lists(CELLS, max_size=5), max_size=5).map(lambda rows: joined(rows).encode("utf-8", "replace"))
)
@example(b"x,y,p\n" + b"9" * 6000 + b",0,1\n")
@example(b"probability,x,y\n1," + b"9" * 6000 + b",1\n")
@example(b"slide_id,split\n" + b'"' * 6001)
@example(b"slide_id,label,probability\na,tumor,1e999\n")
@example(b"slide_id,path\na,x\xed\xa0\x80")
def test_no_file_ends_in_anything_but_a_clear_error(tmp_path: Path, data: bytes) -> None:
    for kind, (_, read, rows) in TABLES.items():
        for text in (data, joined(rows).encode() + data, joined(rows[:1]).encode() + data):
            path = write(tmp_path, kind, text)
            with suppress(WsiIpsError):
                read(path)
