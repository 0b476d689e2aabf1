"""Splits of a cohort into train, val and test: saved to a file with a hash, read back, and put into the manifest."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from wsi_ips.errors import ManifestError, RecipeError
from wsi_ips.labels import Split
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.provenance import atomic_write_json, atomic_write_text, fingerprint

SCHEMA_VERSION = 1
SHOWN = 5


@dataclass(frozen=True)
class Splits:
    """One assignment of slides to splits per fold.

    Attributes
    ----------
    folds
        Split by slide_id, for each fold; fixed splits are one fold. Slides in no split are absent.
    settings
        How they were made; plain JSON values.
    """

    folds: tuple[Mapping[str, Split], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Fingerprint of the assignment, without the settings."""
        return fingerprint("splits", [dict(sorted(fold.items())) for fold in self.folds])

    def counts(self, fold: int) -> Counter[str]:
        """Count the slides of each split."""
        return Counter(self.folds[fold].values())


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
        document = {
            "schema_version": SCHEMA_VERSION,
            "hash": splits.hash,
            "settings": dict(splits.settings),
            "folds": [dict(fold) for fold in splits.folds],
        }
        atomic_write_json(path, document)
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
    """Read splits from a file; if the file holds a hash, check that nothing changed since.

    A CSV needs column ``slide_id`` and ``split`` or ``fold_0``, ``fold_1`` ...; one from another source needs no hash.
    """
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
        raise ValueError(f"slide `{Counter(names).most_common(1)[0][0]}` is there twice")
    folds: list[dict[str, Any]] = [{row["slide_id"]: row[column] for row in rows if row[column]} for column in columns]
    hashes = {row.get("hash") or "" for row in rows}
    if len(hashes) > 1:
        raise ValueError("rows with different hashes")
    return Splits(tuple(folds)), hashes.pop()
