"""Reading a manifest: all problems at once, each with its row and column.

Rows are counted as a spreadsheet counts them: the header is row 1, and an empty row is a row.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.record import SlideRecord
from wsi_ips.manifest.table import Row, read_rows

MAX_PROBLEMS = 20
FILES = ("annotation", "coordinates", "tissue_mask")
"""Columns that name a file beside the manifest."""


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    Attributes
    ----------
    path
        Its file.
    records
        Its rows, in order.
    further
        Text in each of the further columns, by slide_id; empty cells as they are.
    """

    path: Path
    records: tuple[SlideRecord, ...]
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Problem(NamedTuple):
    """What is wrong in one row; problems sort by row."""

    row: int
    text: str


class Numbered(NamedTuple):
    """A record with the row it stands in."""

    row: int
    record: SlideRecord


def read_manifest(
    path: Path, *, label_column: str = "label", further_columns: Sequence[str] = (), leaks: Container[str] = ()
) -> Manifest:
    """Read and check a manifest.

    Whether the slides' files exist is not checked here: a missing file fails that slide, not the cohort.

    Parameters
    ----------
    path
        CSV file with a header; comma, semicolon or tab, UTF-8 with or without byte order mark.
    label_column
        Column that holds the label; must be there unless it is ``label``.
    further_columns
        More columns to read, all of which must be there.
    leaks
        What may be in two splits without an error: ``patient``, ``content`` (a file).

    Raises
    ------
    ManifestError
        Not readable, a needed column is missing, or rows with problems; names rows and columns.
    """
    rows = read_rows(path, label_column=label_column, further_columns=further_columns)
    records, problems = list[Numbered](), list[Problem]()
    for row in rows:
        try:
            records.append(Numbered(row.number, _record(row, label_column, path.resolve().parent)))
        except ValidationError as error:
            problems += [Problem(row.number, _explain(row.number, p, label_column)) for p in error.errors()]
    problems += [Problem(row.number, row.surplus) for row in rows if row.surplus]
    problems += [*_named_twice(rows), *_in_two_splits(records, leaks)]
    if problems:
        raise ManifestError(f"manifest {path}:\n  {_listed(sorted(problems))}")
    if not records:
        raise ManifestError(f"manifest {path}: no slide in it; add one row per slide")
    further = {row.cells["slide_id"]: tuple(row.cells.get(name, "") for name in further_columns) for row in rows}
    return Manifest(path, tuple(numbered.record for numbered in records), further)


def _record(row: Row, label_column: str, folder: Path) -> SlideRecord:
    names = {name: label_column if name == "label" else name for name in SlideRecord.model_fields}
    values = {name: row.cells[column] for name, column in names.items() if row.cells.get(column)}
    record = SlideRecord.model_validate(values)
    # Paths beside the manifest; those of slides may be URLs.
    files = {name: folder / file for name in FILES if (file := getattr(record, name)) is not None}
    path = record.path if isinstance(record.path, str) else folder / record.path
    return record.model_copy(update={"path": path, **files})


def _explain(number: int, problem: Any, label_column: str) -> str:
    column = str(problem["loc"][0])
    where = f"row {number}, column `{label_column if column == 'label' else column}`"
    if problem["type"] == "missing":
        return f"{where}: empty; fill it in"
    if column == "split":
        return f"{where}: {problem['input']!r} is no split; write train, val or test, or leave it empty"
    return f"{where}: {problem['input']!r} {problem['msg'].removeprefix('Value error, ')}"


def _named_twice(rows: Sequence[Row]) -> Iterator[Problem]:
    """Names that some file system does not tell apart count as one."""
    first: dict[str, Row] = {}
    for row in rows:
        name = row.cells.get("slide_id", "")
        if not name:
            continue
        known = first.setdefault(unicodedata.normalize("NFC", name).casefold(), row)
        if known is not row:
            other = known.cells["slide_id"]
            case = "" if other == name else f" (as `{other}`; capitals make no other folder on every disk)"
            yield Problem(
                row.number,
                f"row {row.number}, column `slide_id`: `{name}` stands already in row {known.number}{case}; "
                "give each slide its own name",
            )


def _in_two_splits(records: Sequence[Numbered], allowed: Container[str]) -> Iterator[Problem]:
    """A patient or a file in two splits: the model would be tested on what it has seen."""
    if "patient" not in allowed:
        yield from _leaks(
            records, lambda r: r.patient_id, "patient_id", "patient `{}`", "put all slides of a patient into one split"
        )
    if "content" not in allowed:
        yield from _leaks(
            records,
            lambda r: r.path if isinstance(r.path, str) else os.path.normpath(r.path),
            "path",
            "file {}",
            "keep one of the rows, or correct a path",
        )


def _leaks(
    records: Sequence[Numbered], key: Callable[[SlideRecord], str | None], column: str, what: str, remedy: str
) -> Iterator[Problem]:
    first: dict[str, Numbered] = {}
    for number, record in records:
        value = key(record)
        if value is None or record.split is None:
            continue
        known = first.setdefault(value, Numbered(number, record))
        if known.record.split != record.split:
            yield Problem(
                number,
                f"row {number}, column `{column}`: {what.format(value)} is in {record.split} here and in "
                f"{known.record.split} in row {known.row}; {remedy}",
            )


def _listed(problems: Sequence[Problem]) -> str:
    lines = [problem.text for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_PROBLEMS} more")
    return "\n  ".join(lines)
