"""Splits of a cohort into train, val and test: files with a hash, and slides that must not be in two of them.

Leakage means slides of one patient, of the same content or of similar appearance in two splits: the model is then
measured on what it has learned. Patients are compared when the manifest is read. Content and appearance are known once
a slide is tiled, so these are compared before training.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from wsi_ips.errors import ManifestError, RecipeError
from wsi_ips.labels import Leak, Split
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.provenance import atomic_write_json, atomic_write_text, fingerprint

SCHEMA_VERSION = 1
SHOWN = 10
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
            f"{', '.join(missing[:SHOWN])}; make the splits again from this manifest"
        )
    return tuple(r.model_copy(update={"split": found.get(r.slide_id)}) for r in records)


def write_splits(path: Path, splits: Splits) -> None:
    """Save splits and their hash as JSON (with settings) or as CSV (a column per fold), by the file's ending."""
    if path.suffix == ".json":
        document = {"schema_version": SCHEMA_VERSION, "hash": splits.hash, "settings": dict(splits.settings)}
        atomic_write_json(path, document | {"folds": [dict(fold) for fold in splits.folds]})
    elif path.suffix == ".csv":
        text, count = StringIO(), len(splits.folds)
        writer = csv.writer(text, lineterminator="\n")
        columns = ["split"] if count == 1 else [f"fold_{k}" for k in range(count)]
        writer.writerow(["slide_id", *columns, "hash"])
        for slide_id in dict.fromkeys(name for fold in splits.folds for name in fold):
            writer.writerow([slide_id, *(fold.get(slide_id, "") for fold in splits.folds), splits.hash])
        atomic_write_text(path, text.getvalue())
    else:
        raise ManifestError(f"{path}: splits are saved as .json or .csv")


def read_splits(path: Path) -> Splits:
    """Read splits from a file; if it holds a hash (a file from another source needs none), check that it still fits."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        splits, stored = (_from_json if path.suffix == ".json" else _from_csv)(text)
    except OSError as error:
        raise ManifestError(f"splits {path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"splits {path}: not made by `wsi-ips split` ({error}); make them again") from error
    odd = {split for fold in splits.folds for split in fold.values()} - set(get_args(Split))
    if odd:
        raise ManifestError(f"splits {path}: `{sorted(odd)[0]}` is not a split; write train, val or test")
    if stored and stored != splits.hash:
        raise ManifestError(
            f"splits {path}: changed since they were saved (hash {stored}, now {splits.hash}); make them again, "
            "or remove the hash to use them as they are"
        )
    return splits


def _from_json(text: str) -> tuple[Splits, str]:
    document = json.loads(text)
    folds = tuple({str(k): v for k, v in fold.items()} for fold in document["folds"])
    if not folds:
        raise ValueError("no fold in it")
    return Splits(folds, document.get("settings", {})), document.get("hash", "")


def _from_csv(text: str) -> tuple[Splits, str]:
    rows = list(csv.DictReader(StringIO(text), strict=True))
    header = list(rows[0]) if rows else []
    columns = [name for name in header if name == "split" or name.startswith("fold_")]
    if "slide_id" not in header or not columns:
        raise ValueError("columns `slide_id` and `split` or `fold_0` ... are expected")
    names = [row["slide_id"] for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"slide `{Counter(names).most_common(1)[0][0]}` appears twice")
    folds: list[dict[str, Any]] = [{row["slide_id"]: row[column] for row in rows if row[column]} for column in columns]
    hashes = {row.get("hash") or "" for row in rows}
    if len(hashes) > 1:
        raise ValueError("rows with different hashes")
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
