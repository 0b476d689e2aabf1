"""Parts of a cohort: made with patients together and labels in proportion, saved with a hash, read back.

Pure but for reading and writing the file. scikit-learn's `StratifiedGroupKFold` deals whole groups into units; the
units are then given to the parts.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ManifestError
from wsi_ips.provenance import atomic_write_json, atomic_write_text, fingerprint

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
SCHEMA_VERSION = 1
MOST_UNITS = 20
CLOSE_ENOUGH = 0.02
"""A share of the cohort counts as met within this."""


@dataclass(frozen=True)
class Splits:
    """One division of a cohort per fold.

    Attributes
    ----------
    folds
        Part by slide_id, for each fold; one fold for fixed parts. Slides that are in no part are absent.
    settings
        How they were made; plain JSON values.
    """

    folds: tuple[Mapping[str, Part], ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Fingerprint of who is in which part; the settings do not count."""
        return fingerprint("splits", [dict(sorted(fold.items())) for fold in self.folds])

    def counts(self, fold: int) -> Counter[str]:
        """Slides per part."""
        return Counter(self.folds[fold].values())


@dataclass(frozen=True)
class Member:
    """A slide that is to be put into a part.

    Attributes
    ----------
    slide_id
        Its name.
    group
        Slides of one group (patient, copies) stay together.
    stratum
        What is kept in proportion, e.g. the label.
    site
        Centre, scanner or the like that is held out as a whole; empty where parts are not made by site.
    """

    slide_id: str
    group: str
    stratum: str
    site: str = ""


def fixed_parts(members: Sequence[Member], fractions: tuple[float, float, float], *, seed: int) -> Splits:
    """Train, val and test in given proportions.

    Where members have sites, whole sites are tested; train and val come from the others.

    Parameters
    ----------
    members
        The slides.
    fractions
        Shares of train, val and test; they are brought to a sum of 1.
    seed
        The same seed and the same slides make the same parts.

    Raises
    ------
    ManifestError
        There are too few groups for as many parts.
    """
    train, val, test = (share / sum(fractions) for share in fractions)
    _require_one_site_per_group(members)
    tested = _chosen(members, test, seed, by_site=_has_sites(members))
    rest = [m for m in members if m.slide_id not in tested]
    checked = _chosen(rest, val / max(train + val, 1e-9), seed + 1, by_site=False)
    return Splits((_fold(members, tested, checked),), {"fractions": [train, val, test], "seed": seed})


def held_out_sites(members: Sequence[Member], sites: Sequence[str], val: float, *, seed: int) -> Splits:
    """Named sites are tested, of the others a share validates.

    Raises
    ------
    ManifestError
        A site has no slide, or nothing is left to train on.
    """
    known = Counter(m.site for m in members)
    for site in sites:
        if not known[site]:
            raise ManifestError(f"no slide of `{site}`; there are: {', '.join(sorted(known))}")
    tested = {m.slide_id for m in members if m.site in sites}
    _require_whole_groups(members, tested)
    rest = [m for m in members if m.slide_id not in tested]
    if not rest:
        raise ManifestError("all sites are held out; nothing is left to train on")
    checked = _chosen(rest, val, seed, by_site=False)
    return Splits((_fold(members, tested, checked),), {"sites": sorted(sites), "val": val, "seed": seed})


def validation_share(members: Sequence[Member], share: float, *, seed: int) -> set[str]:
    """A share of the slides, in whole groups, their strata in proportion.

    Raises
    ------
    ManifestError
        There are fewer than two groups.
    """
    return _chosen(members, share, seed, by_site=False)


def k_folds(members: Sequence[Member], folds: int, val: float, *, seed: int) -> Splits:
    """Every slide is tested in exactly one of the folds; of the others a share validates.

    Where members have sites, a fold tests whole sites; with as many folds as sites that is leave one site out.

    Parameters
    ----------
    members
        The slides.
    folds
        How many.
    val
        Share of the slides that are not tested that goes to ``val``; may be 0.
    seed
        The same seed and the same slides make the same folds.

    Raises
    ------
    ManifestError
        There are fewer groups, or sites, than folds.
    """
    by_site = _has_sites(members)
    _require_one_site_per_group(members)
    units = _units(members, folds, seed, by_site=by_site)
    made = []
    for k in range(folds):
        tested = {m.slide_id for m, unit in zip(members, units, strict=True) if unit == k}
        rest = [m for m in members if m.slide_id not in tested]
        made.append(_fold(members, tested, _chosen(rest, val, seed + 1 + k, by_site=False)))
    return Splits(tuple(made), {"folds": folds, "val": val, "seed": seed})


def joined_groups(slide_ids: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Group of each slide where the two of a pair belong together, and so on; a group is called by its first slide."""
    order = list(slide_ids)
    parent = {name: name for name in order}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    rank = {name: position for position, name in enumerate(order)}
    for first, second in pairs:
        low, high = sorted((root(first), root(second)), key=rank.__getitem__)
        parent[high] = low
    return {name: root(name) for name in order}


def _chosen(members: Sequence[Member], share: float, seed: int, *, by_site: bool) -> set[str]:
    """A share of the slides, in whole groups (or sites), their strata in proportion."""
    if share <= 0:
        return set()
    groups = len({_key(m, by_site) for m in members})
    if groups < 2:
        raise ManifestError(
            f"{groups} {'site' if by_site else 'patient or group of copies'} cannot be divided; add slides, or ask for "
            "fewer parts"
        )
    units = min(range(2, min(MOST_UNITS, groups) + 1), key=lambda k: (_miss(share, k), k))
    take = min(units - 1, max(1, round(share * units)))
    dealt = _units(members, units, seed, by_site=by_site)
    return {m.slide_id for m, unit in zip(members, dealt, strict=True) if unit < take}


def _miss(share: float, units: int) -> float:
    off = abs(max(1, round(share * units)) / units - share)
    return 0.0 if off <= CLOSE_ENOUGH else off


def _units(members: Sequence[Member], units: int, seed: int, *, by_site: bool) -> NDArray[np.intp]:
    """Number of the unit of each member."""
    from sklearn.model_selection import StratifiedGroupKFold

    keys, strata = [_key(m, by_site) for m in members], [m.stratum for m in members]
    if units > len(set(keys)):
        what = "sites" if by_site else "patients (or slides without one)"
        raise ManifestError(f"{units} folds of {len(set(keys))} {what}; ask for at most as many")
    largest = max(Counter(strata).values())
    if units > largest:  # the splitter's own limit: then only the groups count
        strata = [""] * len(members)
    dealt = np.empty(len(members), np.intp)
    splitter = StratifiedGroupKFold(units, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # A stratum smaller than the number of units is spread as it can be.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, chosen) in enumerate(splitter.split(keys, strata, keys)):
            dealt[chosen] = number
    return dealt


def _fold(members: Sequence[Member], tested: set[str], checked: set[str]) -> dict[str, Part]:
    def part(slide_id: str) -> Part:
        return "test" if slide_id in tested else "val" if slide_id in checked else "train"

    return {m.slide_id: part(m.slide_id) for m in members}


def _has_sites(members: Sequence[Member]) -> bool:
    return any(m.site for m in members)


def _key(member: Member, by_site: bool) -> str:
    return member.site if by_site else member.group


def _require_one_site_per_group(members: Sequence[Member]) -> None:
    sites: dict[str, set[str]] = {}
    for member in members:
        sites.setdefault(member.group, set()).add(member.site)
    torn = [f"{group} ({', '.join(sorted(found))})" for group, found in sites.items() if len(found) > 1]
    if torn:
        raise ManifestError(
            f"patients or copies with slides of two sites: {', '.join(sorted(torn)[:5])}; correct the manifest, "
            "or make the parts without sites"
        )


def _require_whole_groups(members: Sequence[Member], tested: set[str]) -> None:
    sides: dict[str, set[bool]] = {}
    for member in members:
        sides.setdefault(member.group, set()).add(member.slide_id in tested)
    torn = [group for group, found in sides.items() if len(found) > 1]
    if torn:
        raise ManifestError(
            f"patients or copies in a site that is held out and in another: {', '.join(sorted(torn)[:5])}; hold "
            "all their sites out, or correct the manifest"
        )


def write_splits(path: Path, splits: Splits) -> None:
    """Save as JSON (with settings) or as CSV (a column per fold), by the file's ending; the hash goes with either.

    Raises
    ------
    ManifestError
        Another ending.
    """
    if path.suffix == ".json":
        document = {
            "schema_version": SCHEMA_VERSION,
            "hash": splits.hash,
            "settings": dict(splits.settings),
            "folds": [dict(fold) for fold in splits.folds],
        }
        atomic_write_json(path, document)
    elif path.suffix == ".csv":
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["slide_id", *_columns(len(splits.folds)), "hash"])
        for slide_id in dict.fromkeys(name for fold in splits.folds for name in fold):
            writer.writerow([slide_id, *(fold.get(slide_id, "") for fold in splits.folds), splits.hash])
        atomic_write_text(path, text.getvalue())
    else:
        raise ManifestError(f"{path}: splits are saved as .json or .csv")


def read_splits(path: Path) -> Splits:
    """Splits of a file; where it holds a hash, the file must still be what was saved.

    A CSV needs column ``slide_id`` and ``split`` or ``fold_0``, ``fold_1`` ...; it may come from elsewhere and hold no
    hash.

    Raises
    ------
    ManifestError
        Not readable, of another form, with a part of another name, or changed since it was saved.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        splits, stored = (_from_json if path.suffix == ".json" else _from_csv)(text)
    except OSError as error:
        raise ManifestError(f"splits {path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"splits {path}: not made by `wsi-ips split` ({error}); make them again") from error
    odd = {part for fold in splits.folds for part in fold.values()} - set(PARTS)
    if odd:
        raise ManifestError(f"splits {path}: `{sorted(odd)[0]}` is no part; write train, val or test")
    if stored and stored != splits.hash:
        raise ManifestError(
            f"splits {path}: changed since they were saved (hash {stored}, now {splits.hash}); make them again, "
            "or take the hash out to use them as they are"
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
        raise ValueError(f"slide `{Counter(names).most_common(1)[0][0]}` stands there twice")
    folds: list[dict[str, Any]] = [{row["slide_id"]: row[column] for row in rows if row[column]} for column in columns]
    hashes = {row.get("hash") or "" for row in rows}
    if len(hashes) > 1:
        raise ValueError("rows with different hashes")
    return Splits(tuple(folds)), hashes.pop()


def _columns(folds: int) -> list[str]:
    return ["split"] if folds == 1 else [f"fold_{k}" for k in range(folds)]
