"""Read a manifest: the CSV file, its rows, and checks that report all problems at once with row and column.

Rows are counted as a spreadsheet counts them: the header is row 1, and an empty row is a row. The file is read by the
standard library and not by pandas: pandas takes the first column for row names where rows have one cell more than the
header, so an unquoted ``0.25,0.26`` would silently shift every column.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
import unicodedata
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.slide_record import REQUIRED, SlideRecord

MAX_PROBLEMS = 20
# Column, name and remedy of what must not be in two splits
ONE_SPLIT = {
    "patient": ("patient_id", "patient `{}`", "put all slides of a patient into one split"),
    "content": ("path", "file {}", "keep one of the rows, or correct a path"),
}
FILE_COLUMNS = ("annotation", "coordinates", "tissue_mask")  # columns that name a file, relative to the manifest


@dataclass(frozen=True)
class Manifest:
    """A checked manifest."""

    path: Path  # the file it was read from
    records: tuple[SlideRecord, ...]
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # unchecked cells of further columns, by slide


@dataclass(frozen=True)
class Row:
    """One row of a manifest file that is not empty."""

    number: int  # as a spreadsheet counts; the header is 1
    cells: dict[str, str]  # stripped text by column
    surplus: str  # message about cells beyond the header; empty without such cells


def read_manifest(
    path: Path, *, label_column: str = "label", further_columns: Sequence[str] = (), leaks: Container[str] = ()
) -> Manifest:
    """Read and check a manifest; a slide's file need not exist, as a missing file fails that slide only."""
    rows = read_rows(path, label_column=label_column, further_columns=further_columns)
    records, problems = list[tuple[int, SlideRecord]](), list[tuple[int, str]]()  # each with its row number
    for row in rows:
        try:
            records.append((row.number, _record(row, label_column, path.resolve().parent)))
        except ValidationError as error:
            problems += [(row.number, _explain(row.number, p, label_column)) for p in error.errors()]
    problems += [(row.number, row.surplus) for row in rows if row.surplus]
    problems += [*_doubled_names(rows), *_in_two_splits(records, leaks)]
    if problems:
        lines = [text for _, text in sorted(problems)]
        more = [f"and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
        raise ManifestError(f"manifest {path}:\n  " + "\n  ".join(lines[:MAX_PROBLEMS] + more))
    if not records:
        raise ManifestError(f"manifest {path}: no slide in it; add one row per slide")
    further = {row.cells["slide_id"]: tuple(row.cells.get(name, "") for name in further_columns) for row in rows}
    return Manifest(path, tuple(record for _, record in records), further)


def read_rows(path: Path, *, label_column: str, further_columns: Sequence[str] = ()) -> list[Row]:
    """Read the rows of a manifest file and check its header; parameters as in :func:`read_manifest`."""
    text = _text(path)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        table = list(csv.reader(StringIO(text), delimiter=separator, strict=True))
    except csv.Error as error:
        raise ManifestError(f"manifest {path}: not a CSV table ({error}); is a quotation mark missing?") from error
    header = [name.strip() for name in table[0]] if table else []
    problems = list(_header_problems(header, label_column, further_columns))
    if problems:
        found = ", ".join(name for name in header if name) or "nothing"
        raise ManifestError(f"manifest {path}, row 1: {'; '.join(problems)}. The file has: {found}")
    rows = (_row(number, header, cells, separator) for number, cells in enumerate(table[1:], start=2))
    return [row for row in rows if row.surplus or any(row.cells.values())]


def _text(path: Path) -> str:
    advice = "save it as `CSV UTF-8`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"manifest {path}: cannot be read ({error.strerror})") from error
    if data.startswith(b"PK"):
        raise ManifestError(f"manifest {path}: a workbook or an archive, not a CSV file; {advice}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"manifest {path}: not UTF-8 text; {advice}") from error
    if "\0" in text:
        raise ManifestError(f"manifest {path}: not UTF-8 text; {advice}")
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    # Excel writes the line `sep=;` and hides it.
    return re.sub(r"\Asep=.\n", "", lines, flags=re.IGNORECASE)


def _header_problems(header: Sequence[str], label_column: str, further_columns: Sequence[str]) -> Iterator[str]:
    known = [label_column if name == "label" else name for name in SlideRecord.model_fields]
    known += [name for name in further_columns if name not in known]
    required = {*REQUIRED, *further_columns, *([label_column] if label_column != "label" else [])}
    others = [name for name in header if name and name not in known]
    for name in known:
        if header.count(name) > 1:
            yield f"column `{name}` appears {header.count(name)} times; keep one"
        if name in header:
            continue
        near = _nearest(name, others, 0.5 if name in required else 0.8)
        if name in required:
            yield f"column `{name}` is missing" + (f"; is it `{near}`? Rename it" if near else "; add it")
        elif near:
            # Silently ignored, a misspelt `patient_id` would switch the leakage check off.
            yield f"column `{near}`: is it `{name}`? Rename it, or add an empty column `{name}` to have it ignored"


def _nearest(name: str, others: Sequence[str], cutoff: float) -> str | None:
    spelled = {re.sub(r"[\W_]", "", other.lower()): other for other in others}
    near = difflib.get_close_matches(re.sub(r"[\W_]", "", name.lower()), spelled, n=1, cutoff=cutoff)
    return spelled[near[0]] if near else None


def _row(number: int, header: Sequence[str], cells: Sequence[str], separator: str) -> Row:
    texts = [cell.strip() for cell in cells]
    surplus = ""
    if any(texts[len(header) :]):
        shown = "tab" if separator == "\t" else separator
        surplus = (
            f"row {number}: {len(texts)} cells where the header has {len(header)}; put a text that holds `{shown}` "
            "into quotation marks"
        )
    return Row(number, dict(zip(header, texts, strict=False)), surplus)


def _record(row: Row, label_column: str, folder: Path) -> SlideRecord:
    columns = {name: label_column if name == "label" else name for name in SlideRecord.model_fields}
    values = {name: row.cells[column] for name, column in columns.items() if row.cells.get(column)}
    record = SlideRecord.model_validate(values)
    # Paths are relative to the manifest; that of a slide may be a URL.
    files = {name: folder / file for name in FILE_COLUMNS if (file := getattr(record, name)) is not None}
    path = record.path if isinstance(record.path, str) else folder / record.path
    return record.model_copy(update={"path": path, **files})


def _explain(number: int, problem: Any, label_column: str) -> str:
    column = str(problem["loc"][0])
    where = f"row {number}, column `{label_column if column == 'label' else column}`"
    if problem["type"] == "missing":
        return f"{where}: empty; fill it in"
    if column == "split":
        return f"{where}: {problem['input']!r} is not a split; write train, val or test, or leave it empty"
    return f"{where}: {problem['input']!r} {problem['msg'].removeprefix('Value error, ')}"


def _doubled_names(rows: Sequence[Row]) -> Iterator[tuple[int, str]]:
    """Find names used twice; names that only differ in case or in Unicode form count as one."""
    first: dict[str, Row] = {}
    for row in rows:
        name = row.cells.get("slide_id", "")
        if not name:
            continue
        known = first.setdefault(unicodedata.normalize("NFC", name).casefold(), row)
        if known is not row:
            other = known.cells["slide_id"]
            case = "" if other == name else f" (as `{other}`; some file systems ignore case)"
            text = f"row {row.number}, column `slide_id`: `{name}` is already in row {known.number}{case}"
            yield row.number, f"{text}; give each slide its own name"


def _in_two_splits(records: Sequence[tuple[int, SlideRecord]], allowed: Container[str]) -> Iterator[tuple[int, str]]:
    """Find patients and files that are in two splits: the model would be tested on slides it has seen."""
    for kind, (column, what, remedy) in ONE_SPLIT.items():
        first: dict[str, tuple[int, SlideRecord]] = {}
        for number, record in records:
            value = getattr(record, column)
            if kind in allowed or value is None or record.split is None:
                continue
            value = os.path.normpath(value) if isinstance(value, Path) else value
            row, known = first.setdefault(value, (number, record))
            if known.split != record.split:
                where = f"row {number}, column `{column}`: {what.format(value)} is in {record.split} here"
                yield number, f"{where} and in {known.split} in row {row}; {remedy}"
