"""Tables of text: one strict reader for all tables of the package, and one writer for those that people open.

Cells stay text. Nothing is taken for a number, a date or a missing value, so slides called ``NA``, ``0012`` and ``1e5``
keep their names. Commas, semicolons or tabs separate cells; blanks around a cell, a byte order mark and the line
``sep=;`` of Excel are dropped. Rows are counted as a spreadsheet counts them: an empty row is a row.

A text that a spreadsheet would run as a formula is written with an apostrophe in front, which the reader takes away.
"""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_ips.errors import WsiIpsError
from wsi_ips.labels import matched

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = ",;\t"
SHOWN = 20  # problems listed in a message
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE | re.ASCII)
NOT_FINITE = frozenset(("nan", "inf", "-inf"))
# A line that begins with one of these characters, after blanks, is a formula to some spreadsheet
SIGN = r"[=+@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b-]"
_FORMULA = r"[^\S\n]*(?:'[^\S\n']*)*" + SIGN
_LINE_START = r"(?:\A|(?<=\n))"
FORMULA = re.compile(_LINE_START + f"(?={_FORMULA})")
GUARDED = re.compile(_LINE_START + f"'(?={_FORMULA})")


@dataclass(frozen=True)
class Row:
    """One row of a table that is not empty."""

    number: int  # as a spreadsheet counts; the header is row 1
    cells: dict[str, str]  # stripped text by column


@dataclass(frozen=True)
class Table:
    """A table with a header; its error messages name the file, and the row where there is one."""

    source: str  # kind and file, such as `manifest cohort.csv`; every message begins with it
    error: type[WsiIpsError]  # raised where the table cannot be used
    header: tuple[str, ...]  # names of the columns, those that have none included
    numbers: tuple[int, ...]  # number of each row
    cells: tuple[list[str], ...]  # stripped texts of each row, as many as the header has

    @property
    def columns(self) -> list[str]:
        """Names of the columns that have one; cells of others are ignored, such as an index that pandas wrote."""
        return [name for name in self.header if name]

    @property
    def rows(self) -> list[Row]:
        """All rows, by column."""
        return [
            Row(n, dict(zip(self.header, row, strict=True))) for n, row in zip(self.numbers, self.cells, strict=True)
        ]

    def frame(self) -> pd.DataFrame:
        """Return the named columns as text; the index holds the numbers of the rows."""
        import pandas as pd

        kept = [place for place, name in enumerate(self.header) if name]
        rows = [[row[place] for place in kept] for row in self.cells]
        return pd.DataFrame(rows, index=list(self.numbers), columns=self.columns, dtype=object)

    def names(self, column: str) -> list[str]:
        """Return a column that names each row; refuse an empty cell, and a name given twice."""
        place, first = self.header.index(column), dict[str, int]()
        for number, row in zip(self.numbers, self.cells, strict=True):
            where = f"{self.source}, row {number}, column `{column}`"
            if not row[place]:
                raise self.error(f"{where}: empty; fill it in")
            if first.setdefault(row[place], number) != number:
                raise self.error(f"{where}: `{row[place]}` is already in row {first[row[place]]}; keep one row of it")
        return list(first)

    def words(self, column: str, known: Sequence[str]) -> list[str]:
        """Return a column whose cells are empty or one of the known words, spelled as these; refuse other cells."""
        place = self.header.index(column)
        found = [matched(row[place], known) for row in self.cells]
        odd = [
            f"row {number}, column `{column}`: {word!r} is none of {', '.join(known)}"
            for number, word in zip(self.numbers, found, strict=True)
            if word and word not in known
        ]
        if odd:
            raise self.error(listing(self.source, odd))
        return found


def read_table(
    path: Path, kind: str, error: type[WsiIpsError], *, known: Sequence[str] = (), required: Sequence[str] = ()
) -> Table:
    """Read a table with a header.

    Parameters
    ----------
    kind
        What the table holds, for messages, such as ``manifest``.
    error
        Raised where the file is no table, names a column twice or has a row with more cells than the header. A row may
        have fewer, as Excel leaves out the last cells where they are empty; these are empty then.
    known
        Columns of which a misspelling is refused: ignored, ``patientid`` or ``Split`` would change what is measured.
    required
        Those of them that must be there.
    """
    source = f"{kind} {path}"
    lines = list(read_cells(path, kind, error))
    if not lines:
        raise error(f"{source}: empty; the first row of a table names its columns")
    (first, header), *rows = lines
    problems = list(_header_problems([name for name in header if name], known, required))
    if problems:
        found = ", ".join(name for name in header if name) or "nothing"
        raise error(f"{source}, row {first}: {'; '.join(problems)}. The file has: {found}")
    width = len(header)
    ragged = [
        f"row {number}: {len(row)} cells where the header has {width}; put a text that holds the separator into "
        "quotation marks"
        for number, row in rows
        if any(row[width:])
    ]
    if ragged:
        raise error(listing(source, ragged))
    cells = tuple(row if len(row) == width else (row + [""] * width)[:width] for _, row in rows)
    return Table(source, error, tuple(header), tuple(number for number, _ in rows), cells)


def read_cells(path: Path, kind: str, error: type[WsiIpsError]) -> Iterator[tuple[int, list[str]]]:
    """Yield number and stripped cells of every row that is not empty; parameters as in :func:`read_table`."""
    text, number = _text(path, f"{kind} {path}", error), 0
    # Excel writes the line `sep=;` and hides it.
    said = re.match(rf"sep=([{SEPARATORS}])\n", text, re.IGNORECASE)
    text = re.sub(r"\Asep=.\n", "", text, flags=re.IGNORECASE)
    first = re.sub(r'"[^"]*"', "", text.lstrip("\n").partition("\n")[0])
    separator = said[1] if said else max(SEPARATORS, key=first.count)
    try:
        rows = csv.reader(StringIO(text), delimiter=separator, strict=True, skipinitialspace=True)
        for number, row in enumerate(rows, start=1):
            cells = [GUARDED.sub("", cell.strip()).strip() if "'" in cell else cell.strip() for cell in row]
            if any(cells):
                yield number, cells
    except csv.Error as reason:
        raise error(
            f"{kind} {path}, row {number + 1}: not a CSV table ({reason}); is a quotation mark missing?"
        ) from reason


def _text(path: Path, source: str, error: type[WsiIpsError]) -> str:
    advice = "save it as `CSV UTF-8`"
    try:
        data = path.read_bytes()
    except OSError as reason:
        raise error(f"{source}: cannot be read ({reason.strerror})") from reason
    if data.startswith(b"PK\x03\x04"):
        raise error(f"{source}: a workbook or an archive, not a CSV file; {advice}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{source}: not UTF-8 text; {advice}") from reason
    if "\0" in text:
        raise error(f"{source}: not UTF-8 text; {advice}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def number_of(text: str) -> float:
    """Return the number in a cell, NaN for an empty one; raises ValueError for anything else, with the remedy."""
    if NUMBER.fullmatch(text):
        return float(text)
    if not text or text.lower() in NOT_FINITE:
        return float(text or "nan")
    remedy = "; write it with a decimal point" if NUMBER.fullmatch(text.replace(",", ".")) else ""
    raise ValueError(f"{text!r} is not a number{remedy}")


def table_text(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a CSV with a header; None and NaN are empty cells, and no cell runs as a formula."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_written, columns))
    writer.writerows(map(_written, row) for row in rows)
    return text.getvalue()


def _written(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str) or NUMBER.fullmatch(value):
        return value
    return FORMULA.sub("'", value.replace("\r\n", "\n").replace("\r", "\n"))


def _header_problems(header: Sequence[str], known: Sequence[str], required: Sequence[str]) -> Iterator[str]:
    yield from (
        f"column `{name}` appears {count} times; keep one" for name, count in Counter(header).items() if count > 1
    )
    others = [name for name in header if name not in known]
    for name in known:
        if name in header:
            continue
        near = _nearest(name, others, 0.5 if name in required else 0.8)
        if name in required:
            yield f"column `{name}` is missing" + (f"; is it `{near}`? Rename it" if near else "; add it")
        elif near:
            yield f"column `{near}`: is it `{name}`? Rename it, or add an empty column `{name}` to have it ignored"


def _nearest(name: str, others: Sequence[str], cutoff: float) -> str | None:
    spelled = {re.sub(r"[\W_]", "", other.lower()): other for other in others}
    near = difflib.get_close_matches(re.sub(r"[\W_]", "", name.lower()), spelled, n=1, cutoff=cutoff)
    return spelled[near[0]] if near else None


def listing(source: str, problems: Sequence[str]) -> str:
    """Return a message with the first problems, a line each."""
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return f"{source}:\n  " + "\n  ".join([*problems[:SHOWN], *more])
