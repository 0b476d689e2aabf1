"""The CSV file under a manifest: encoding, separator, header, cells; every cell is text.

The standard library's reader and not pandas: pandas takes the first column for row names where rows have
one cell more than the header, so an unquoted ``0.25,0.26`` would shift every column in silence.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.record import REQUIRED, SlideRecord


@dataclass(frozen=True)
class Row:
    """One row that is not empty.

    Attributes
    ----------
    number
        As a spreadsheet counts; the header is 1.
    cells
        Text by column, without blanks around.
    surplus
        What to say of cells beyond the header, else empty.
    """

    number: int
    cells: dict[str, str]
    surplus: str


def read_rows(path: Path, *, label_column: str, further_columns: Sequence[str] = ()) -> list[Row]:
    """Rows of a manifest file.

    Parameters
    ----------
    path
        CSV file.
    label_column
        Column that holds the label; must be there unless it is ``label``.
    further_columns
        More columns that must be there.

    Raises
    ------
    ManifestError
        Not a text table in UTF-8, or columns are missing, doubled or misspelt.
    """
    text = _text(path)
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        table = list(csv.reader(StringIO(text), delimiter=separator, strict=True))
    except csv.Error as error:
        raise ManifestError(f"manifest {path}: no CSV table ({error}); is a quotation mark missing?") from error
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
    # Excel writes and hides this line.
    return re.sub(r"\Asep=.\n", "", lines, flags=re.IGNORECASE)


def _header_problems(header: Sequence[str], label_column: str, further_columns: Sequence[str]) -> Iterator[str]:
    known = [label_column if name == "label" else name for name in SlideRecord.model_fields]
    known += [name for name in further_columns if name not in known]
    needed = {*REQUIRED, *further_columns, *([label_column] if label_column != "label" else [])}
    others = [name for name in header if name and name not in known]
    for name in known:
        if header.count(name) > 1:
            yield f"column `{name}` stands there {header.count(name)} times; keep one"
        if name in header:
            continue
        near = _nearest(name, others, 0.5 if name in needed else 0.8)
        if name in needed:
            yield f"column `{name}` is missing" + (f"; is it `{near}`? Rename it" if near else "; add it")
        elif near:
            # Ignored in silence, a misspelt `patient_id` would switch the leakage check off.
            yield f"column `{near}`: is it `{name}`? Rename it, or add an empty column `{name}` to have it ignored"


def _nearest(name: str, others: Sequence[str], cutoff: float) -> str | None:
    spelled = {_simple(other): other for other in others}
    near = difflib.get_close_matches(_simple(name), spelled, n=1, cutoff=cutoff)
    return spelled[near[0]] if near else None


def _simple(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


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
