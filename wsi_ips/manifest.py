"""The manifest: one row per slide, and the folders it can be made from.

Pandas reads the file (everything as text), pydantic checks each row, and all problems are reported
together, each with its row as a spreadsheet counts them (the header is row 1) and its column.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from wsi_ips.errors import ManifestError
from wsi_ips.geometry import Scale

SLIDE_SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .mrxs .scn .bif .vms .vmu .svslide .czi .dcm".split()
)
"""File names that are taken for slides when a folder is searched."""

MAX_PROBLEMS = 20


def _scale(value: object) -> object:
    """``0.25`` or ``0.25,0.26`` (x, y) as a scale."""
    if not isinstance(value, str):
        return value
    parts = [float(part) for part in value.replace(";", ",").split(",")]
    if len(parts) not in (1, 2) or not all(0.01 <= part <= 100 for part in parts):
        raise ValueError("expected µm per level-0 pixel between 0.01 and 100, one number or `x,y`")
    return Scale(parts[0], parts[-1])


class SlideRecord(BaseModel):
    """One row of a manifest. Further columns are kept out of it and never an error."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    slide_id: str = Field(
        min_length=1,
        max_length=120,
        pattern=r"^[^./\\:*?\"<>|\x00-\x1f][^/\\:*?\"<>|\x00-\x1f]*$",
        description="Name of the slide, unique in the file; becomes a folder name",
    )
    path: Path = Field(description="The slide's file, relative to the manifest or absolute")
    label: str | None = Field(
        None, description="Slide label, one of the recipe's classes; empty = not known"
    )
    patient_id: str | None = Field(None, description="Slides of one patient stay in one split")
    split: Literal["train", "val", "test"] | None = Field(None, description="Part of the cohort; empty = predict only")
    mpp: Annotated[Scale, BeforeValidator(_scale)] | None = Field(
        None, description="µm per level-0 pixel; wins over what the file says; one number or `x,y`"
    )
    annotation: Path | None = Field(
        None, description="ASAP XML with the outlined tumour, relative to the manifest or absolute"
    )


REQUIRED = ("slide_id", "path")


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    Attributes
    ----------
    path
        Its file.
    records
        Its rows, in order.
    """

    path: Path
    records: tuple[SlideRecord, ...]


def read_manifest(path: Path, *, label_column: str = "label") -> Manifest:
    """Read and check a manifest.

    Whether the slides' files exist is not checked here: a missing file fails that slide, not the cohort.

    Parameters
    ----------
    path
        CSV file with a header; comma or semicolon, UTF-8 with or without byte order mark.
    label_column
        Column that holds the label.

    Raises
    ------
    ManifestError
        Not readable, a needed column is missing, or rows with problems; names row and column.
    """
    table = _read_table(path)
    wanted = [*REQUIRED, *([label_column] if label_column != "label" else [])]
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise ManifestError(f"manifest {path}: {_missing_columns(missing, list(table.columns))}")
    if label_column != "label":
        table = table.drop(columns="label", errors="ignore").rename(columns={label_column: "label"})
    folder, records, problems = path.resolve().parent, list[SlideRecord](), list[str]()
    for number, row in enumerate(table.to_dict("records"), start=2):
        values = {str(name): text.strip() for name, text in row.items() if text.strip()}
        try:
            records.append(_located(SlideRecord.model_validate(values), folder))
        except ValidationError as error:
            problems += [_explain(number, problem, label_column) for problem in error.errors()]
    problems += _duplicates(table)
    problems += _split_patients(records)
    if problems:
        shown = "\n  ".join(problems[:MAX_PROBLEMS])
        more = f"\n  and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise ManifestError(f"manifest {path}:\n  {shown}{more}")
    if not records:
        raise ManifestError(f"manifest {path}: no slide in it; add one row per slide")
    return Manifest(path, tuple(records))


def discover_slides(folder: Path) -> pd.DataFrame:
    """Manifest of a folder: CAMELYON16-style where it looks like one, else every slide file in it.

    Parameters
    ----------
    folder
        The folder; paths in the result are absolute.

    Raises
    ------
    ManifestError
        No slide is found, or two files would have one slide_id.
    """
    if not folder.is_dir():
        raise ManifestError(f"folder {folder}: no such folder")
    if (folder / "training").is_dir() or (folder / "testing").is_dir():
        return discover_camelyon16(folder)
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix.lower() in SLIDE_SUFFIXES)
    return _table([{"slide_id": f.stem, "path": f} for f in files], folder)


def discover_camelyon16(folder: Path) -> pd.DataFrame:
    """Manifest of a CAMELYON16 folder, with the official split.

    ``training/normal``, ``training/tumor``, ``testing/images`` (or ``testing``), ``testing/reference.csv``, annotations in
    any folder ``*annotations*``. Test slides have no label where ``reference.csv`` is missing.

    Raises
    ------
    ManifestError
        No slide is found, annotations are still packed, or ``reference.csv`` misses slides.
    """
    packed = [f for f in folder.rglob("*annotations*.zip") if not f.with_suffix("").is_dir()]
    if packed:
        raise ManifestError(f"folder {folder}: unpack {packed[0].name} first, else no slide has its outlines")
    outlines = {
        f.stem.lower(): f
        for f in sorted(folder.rglob("*.xml"))
        if any("annotation" in part.lower() for part in f.parts)
    }
    reference = _reference(folder / "testing" / "reference.csv")
    rows: list[dict[str, Any]] = []
    for part, label in (("training/normal", "normal"), ("training/tumor", "tumor"), ("testing", None)):
        for file in sorted((folder / part).rglob("*.tif")):
            if "mask" in file.stem.lower() or any("mask" in p.lower() for p in file.relative_to(folder).parts):
                continue
            name = file.stem.lower()
            known = label or reference.get(name)
            if label is None and reference and known is None:
                raise ManifestError(f"{folder / 'testing' / 'reference.csv'}: no row for slide {file.stem}")
            split = "test" if label is None else "train"
            outline = outlines.get(name)
            rows.append(
                {"slide_id": file.stem, "path": file, "label": known, "split": split, "annotation": outline}
            )
    return _table(rows, folder)


def manifest_schema() -> dict[str, Any]:
    """JSON schema of a manifest's columns; every cell is text."""
    properties = {}
    for name, info in SlideRecord.model_fields.items():
        entry: dict[str, Any] = {"type": "string", "description": info.description}
        if name == "split":
            entry["enum"] = ["train", "val", "test", ""]
        if name == "slide_id":
            entry |= {"minLength": 1, "maxLength": 120}
        properties[name] = entry
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A row of a wsi-ips manifest",
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED),
        "additionalProperties": True,
    }


def _read_table(path: Path) -> pd.DataFrame:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ManifestError(f"manifest {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"manifest {path}: not UTF-8 text; save it as `CSV UTF-8`, not as a workbook"
        ) from error
    header = text.partition("\n")[0]
    separator = ";" if header.count(";") > header.count(",") else ","
    try:
        table = pd.read_csv(StringIO(text), sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ManifestError(f"manifest {path}: no CSV table: {error}") from error
    table.columns = [str(name).strip() for name in table.columns]
    return table


def _missing_columns(missing: Sequence[str], found: list[str]) -> str:
    texts = []
    for name in missing:
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
        texts.append(f"column `{name}` is missing" + (f" (is it `{near[0]}`? rename it)" if near else ""))
    return f"{'; '.join(texts)}; the file has: {', '.join(found)}"


def _explain(number: int, problem: Any, label_column: str) -> str:
    column = str(problem["loc"][0])
    column = label_column if column == "label" else column
    if problem["type"] == "missing":
        return f"row {number}, column `{column}`: empty; fill it in"
    if column == "slide_id":
        return (
            f"row {number}, column `slide_id`: {problem['input']!r} cannot be a folder name; use letters, digits, "
            "blanks, - and _"
        )
    return f"row {number}, column `{column}`: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"


def _duplicates(table: pd.DataFrame) -> list[str]:
    names = table["slide_id"].str.strip()
    again = names[names.duplicated() & (names != "")]
    return [
        f"row {int(str(row)) + 2}, column `slide_id`: `{name}` stands already in row "
        f"{int(str(names[names == name].index[0])) + 2}; give each slide its own name"
        for row, name in again.items()
    ]


def _split_patients(records: Sequence[SlideRecord]) -> list[str]:
    """A patient in two splits lets the model recognise people instead of disease."""
    seen: dict[str, SlideRecord] = {}
    problems = []
    for record in records:
        if record.patient_id is None or record.split is None:
            continue
        first = seen.setdefault(record.patient_id, record)
        if first.split != record.split:
            problems.append(
                f"column `split`: patient `{record.patient_id}` is in {first.split} (slide {first.slide_id}) and in "
                f"{record.split} (slide {record.slide_id}); put all slides of a patient into one split"
            )
    return problems


def _located(record: SlideRecord, folder: Path) -> SlideRecord:
    annotation = folder / record.annotation if record.annotation else None
    return record.model_copy(update={"path": folder / record.path, "annotation": annotation})


def _reference(path: Path) -> dict[str, str]:
    """Labels of the test slides by lower-case name; rows are ``test_001,Tumor,...`` with or without a header."""
    if not path.is_file():
        return {}
    labels = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        cells = [cell.strip().lower() for cell in re.split(r"[,;]", line)]
        if len(cells) >= 2 and cells[1] in ("normal", "tumor"):
            labels[cells[0].removesuffix(".tif")] = cells[1]
    return labels


def _table(rows: Sequence[dict[str, Any]], folder: Path) -> pd.DataFrame:
    if not rows:
        raise ManifestError(
            f"folder {folder}: no slide in it; known endings: {', '.join(sorted(SLIDE_SUFFIXES))}"
        )
    names = pd.Series([row["slide_id"] for row in rows])
    again = names[names.duplicated()]
    if len(again):
        raise ManifestError(
            f"folder {folder}: two files would be slide `{again.iloc[0]}`; write a manifest with names of your own"
        )
    table = pd.DataFrame(rows, dtype=object)
    return table.where(table.notna(), None)
