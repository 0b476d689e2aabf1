"""Read a manifest: its rows, and checks that report all problems at once with row and column."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.slide_record import REQUIRED, SlideRecord
from wsi_ips.tables import Row, listing, read_table

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
    problems += [*_doubled_names(rows), *_in_two_splits(records, leaks)]
    if problems:
        raise ManifestError(listing(f"manifest {path}", [text for _, text in sorted(problems)]))
    if not records:
        raise ManifestError(f"manifest {path}: no slide in it; add one row per slide")
    further = {row.cells["slide_id"]: tuple(row.cells.get(name, "") for name in further_columns) for row in rows}
    return Manifest(path, tuple(record for _, record in records), further)


def read_rows(path: Path, *, label_column: str, further_columns: Sequence[str] = ()) -> list[Row]:
    """Read the rows of a manifest file and check its header; parameters as in :func:`read_manifest`."""
    known = [label_column if name == "label" else name for name in SlideRecord.model_fields]
    required = [*REQUIRED, *further_columns, *([label_column] if label_column != "label" else [])]
    columns = list(dict.fromkeys([*known, *further_columns]))
    return read_table(path, "manifest", ManifestError, known=columns, required=required).rows


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
