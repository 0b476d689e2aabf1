"""Splits of a cohort into train, val and test: files with a hash, and slides that must not be in two of them.

Leakage means slides of one patient, of the same content or of similar appearance in two splits: the model is then
measured on what it has learned. Patients are compared when the manifest is read. Content and appearance are known once
a slide is tiled, so these are compared before training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from wsi_ips.errors import ManifestError, RecipeError, few
from wsi_ips.labels import Leak, Split, matched
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.provenance import atomic_write_json, atomic_write_text, fingerprint, parse_object
from wsi_ips.tables import read_table, table_text

SCHEMA_VERSION = 1
SHOWN = 10
SPLITS: tuple[Split, ...] = get_args(Split)
REASONS: Mapping[Leak, str] = {
    "patient": "are of one patient",
    "content": "have the same content",
    "thumbnail": "look alike (possibly turned or mirrored)",
}


@dataclass(frozen=True)
class Splits:
    """One assignment of slides to splits per fold."""

    folds: tuple[Mapping[str, Split], ...]  # split by slide_id; fixed splits are one fold
    settings: Mapping[str, Any] = field(default_factory=dict)  # how they were made; plain JSON values

    def counts(self, fold: int) -> Counter[str]:
        """Count the slides of each split."""
        return Counter(self.folds[fold].values())

    @property
    def hash(self) -> str:
        """Fingerprint of the assignment, without the settings."""
        return fingerprint("splits", [dict(sorted(fold.items())) for fold in self.folds])


def with_splits(records: Sequence[SlideRecord], path: Path, fold: int) -> tuple[SlideRecord, ...]:
    """Return the records with the splits of a file's fold; a slide in no split gets None and is only predicted."""
    folds = read_splits(path).folds
    if fold >= len(folds):
        raise RecipeError(f"key `split.fold`: {fold}, but {path} holds {len(folds)} (from 0)")
    found = folds[fold]
    missing = sorted(found.keys() - {r.slide_id for r in records})
    if missing:
        raise ManifestError(
            f"splits {path}: {len(missing)} slides that are in no row of the manifest: "
            f"{few(missing)}; make the splits again from this manifest"
        )
    return tuple(r.model_copy(update={"split": found.get(r.slide_id)}) for r in records)


def write_splits(path: Path, splits: Splits) -> None:
    """Save splits and their hash as JSON (with settings) or as CSV (a column per fold), by the file's ending."""
    if path.suffix == ".json":
        document = {"schema_version": SCHEMA_VERSION, "hash": splits.hash, "settings": dict(splits.settings)}
        atomic_write_json(path, document | {"folds": [dict(fold) for fold in splits.folds]})
    elif path.suffix == ".csv":
        names = ["split"] if len(splits.folds) == 1 else [f"fold_{k}" for k in range(len(splits.folds))]
        slides = dict.fromkeys(name for fold in splits.folds for name in fold)
        rows = ([name, *(fold.get(name) for fold in splits.folds), splits.hash] for name in slides)
        atomic_write_text(path, table_text(["slide_id", *names, "hash"], rows))
    else:
        raise ManifestError(f"{path}: splits are saved as .json or .csv")


def read_splits(path: Path) -> Splits:
    """Read splits from a file; if it holds a hash (a file from another source needs none), check that it still fits."""
    splits, stored = (_from_json if path.suffix == ".json" else _from_table)(path)
    if stored and stored != splits.hash:
        raise ManifestError(
            f"splits {path}: changed since they were saved (hash {stored}, now {splits.hash}); make them again, "
            "or remove the hash to use them as they are"
        )
    return splits


def _from_json(path: Path) -> tuple[Splits, str]:
    try:
        document = parse_object(path.read_text(encoding="utf-8-sig"))
        given: list[dict[str, Any]] = [
            {name: matched(split, SPLITS) for name, split in fold.items()} for fold in document["folds"]
        ]
        if not given:
            raise ValueError("no fold in it")
        splits, stored = Splits(tuple(given), dict(document.get("settings", {}))), str(document.get("hash", ""))
    except OSError as error:
        raise ManifestError(f"splits {path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"splits {path}: not made by `wsi-ips split` ({error}); make them again") from error
    odd = [(name, split) for fold in given for name, split in fold.items() if split not in SPLITS]
    if odd:
        raise ManifestError(
            f"splits {path}: slide `{odd[0][0]}`: {odd[0][1]!r} is not a split; write {', '.join(SPLITS)}"
        )
    return splits, stored


def _from_table(path: Path) -> tuple[Splits, str]:
    table = read_table(path, "splits", ManifestError, known=["slide_id", "hash"], required=["slide_id"])
    columns = [name for name in table.columns if name == "split" or name.startswith("fold_")]
    if not columns or not table.cells:
        raise ManifestError(f"splits {path}: columns `slide_id` and `split` or `fold_0` ... are expected, and rows")
    rows = table.rows
    names = table.names("slide_id")
    hashes = {row.cells.get("hash", "") for row in rows}
    if len(hashes) > 1:
        raise ManifestError(f"splits {path}: rows with different hashes; make them again, or remove column `hash`")
    assigned = (zip(names, table.words(column, SPLITS), strict=True) for column in columns)
    folds: list[dict[str, Any]] = [{name: split for name, split in fold if split} for fold in assigned]
    return Splits(tuple(folds)), hashes.pop()


@dataclass(frozen=True)
class RelatedSlides:
    """Two slides that must be in the same split."""

    kind: Leak
    first: str
    second: str
    detail: str = ""  # the patient, or how much the perceptual hashes differ

    def __str__(self) -> str:
        return f"{self.first} and {self.second} {REASONS[self.kind]}" + (f" ({self.detail})" if self.detail else "")


def related_slides(
    records: Sequence[SlideRecord],
    contents: Mapping[str, str],
    similar: Iterable[tuple[str, str, float]],
    *,
    across: bool = False,
) -> list[RelatedSlides]:
    """Find slides that belong together; for a patient with many slides, pair each with the first."""
    splits = {r.slide_id: r.split for r in records} if across else None
    return [
        *_equal("patient", ((r.slide_id, r.patient_id) for r in records), splits),
        *_equal("content", contents.items(), splits),
        *(
            RelatedSlides("thumbnail", first, second, f"{distance:.0%} of the hash differs")
            for first, second, distance in similar
            if contents.get(first, "") != contents.get(second, "-")  # equal contents are listed above
            and _counts(splits, first, second)
        ),
    ]


def require_no_leaks(
    records: Sequence[SlideRecord],
    contents: Mapping[str, str],
    similar: Iterable[tuple[str, str, float]],
    allow: Collection[Leak],
) -> None:
    """Refuse related slides in different splits, unless ``allow`` names the reason; see :func:`related_slides`."""
    leaks = [pair for pair in related_slides(records, contents, similar, across=True) if pair.kind not in allow]
    if not leaks:
        return
    splits = {r.slide_id: r.split for r in records}
    lines = [f"{pair} and are in {splits[pair.first]} and {splits[pair.second]}" for pair in leaks[:SHOWN]]
    more = [f"and {len(leaks) - SHOWN} more"] if len(leaks) > SHOWN else []
    kinds = ", ".join(dict.fromkeys(pair.kind for pair in leaks))
    raise ManifestError(
        "slides of different splits belong together, so the model would be measured on what it has learned:\n  "
        + "\n  ".join([*lines, *more])
        + f"\nput them into one split (`wsi-ips split` does), or allow it: `split.allow: [{kinds}]`"
    )


def _equal(
    kind: Leak, values: Iterable[tuple[str, str | None]], splits: Mapping[str, str | None] | None
) -> Iterator[RelatedSlides]:
    groups: dict[str, list[str]] = {}
    for name, value in values:
        if value:
            groups.setdefault(value, []).append(name)
    for value, names in groups.items():
        pairs = combinations(names, 2) if splits is not None else ((names[0], other) for other in names[1:])
        detail = value if kind == "patient" else ""
        yield from (RelatedSlides(kind, a, b, detail) for a, b in pairs if _counts(splits, a, b))


def _counts(splits: Mapping[str, str | None] | None, first: str, second: str) -> bool:
    if splits is None:
        return True
    one, other = splits.get(first), splits.get(second)
    return one is not None and other is not None and one != other
