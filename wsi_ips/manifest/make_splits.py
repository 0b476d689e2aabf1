"""Divide slides into splits or folds: whole patients, labels in proportion, whole centres held out where asked.

scikit-learn's `StratifiedGroupKFold` deals whole groups into K units of about equal size and equal strata. A split of
share s then takes round(s * K) of the units, with the K up to 20 for which that comes closest.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ManifestError
from wsi_ips.labels import Split
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.manifest.splits import Splits

MOST_UNITS = 20
SHOWN = 5
CLOSE_ENOUGH = 0.02  # largest error of a share that still counts as met


@dataclass(frozen=True)
class SplitPlan:
    """Plan for dividing a cohort."""

    # train, val and test; with folds only val counts: as its share of the slides not tested
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    folds: int | None = None  # None for fixed splits
    stratify: tuple[str, ...] = ("label",)  # columns kept in proportion; where the first is empty, a slide is left out
    by: str | None = None  # column of the centre: whole centres are tested
    hold_out: tuple[str, ...] = ()  # centres to test; empty = chosen by share or fold
    seed: int = 0


@dataclass(frozen=True)
class SlideToSplit:
    """A slide to assign to a split."""

    slide_id: str
    group: str  # slides of one group (patient, copies) stay together
    stratum: str  # value kept in proportion, such as the label
    site: str = ""  # centre or scanner, tested as a whole; empty where splits are not made by site


def make_splits(slides: Sequence[SlideToSplit], plan: SplitPlan) -> Splits:
    """Divide slides as planned; the settings of the result record the plan."""
    train, val, _ = plan.fractions
    val_share = val / (train + val) if train + val else 0.0
    if plan.hold_out:
        splits = held_out_sites(slides, plan.hold_out, val_share, seed=plan.seed)
    elif plan.folds is not None:
        splits = k_folds(slides, plan.folds, val_share, seed=plan.seed)
    else:
        splits = fixed_splits(slides, plan.fractions, seed=plan.seed)
    return replace(splits, settings={**splits.settings, "stratify": list(plan.stratify), "by": plan.by})


def fixed_splits(slides: Sequence[SlideToSplit], fractions: tuple[float, float, float], *, seed: int) -> Splits:
    """Divide slides into train, val and test of given shares; where slides have sites, whole sites are tested."""
    train, val, test = (share / sum(fractions) for share in fractions)
    _require_one_site_per_group(slides)
    tested = _chosen(slides, test, seed, by_site=any(s.site for s in slides))
    rest = [s for s in slides if s.slide_id not in tested]
    validating = _chosen(rest, val / max(train + val, 1e-9), seed + 1, by_site=False)
    return Splits((_fold(slides, tested, validating),), {"fractions": [train, val, test], "seed": seed})


def held_out_sites(slides: Sequence[SlideToSplit], sites: Sequence[str], val: float, *, seed: int) -> Splits:
    """Test the named sites; of the other slides a share ``val`` validates."""
    known = Counter(s.site for s in slides)
    for site in sites:
        if not known[site]:
            raise ManifestError(f"no slide of `{site}`; there are: {', '.join(sorted(known))}")
    tested = {s.slide_id for s in slides if s.site in sites}
    torn = _torn_groups((s.group, str(s.slide_id in tested)) for s in slides)
    if torn:
        raise ManifestError(
            f"patients or copies in a site that is held out and in another: {', '.join(sorted(torn)[:SHOWN])}; hold "
            "out all their sites, or correct the manifest"
        )
    rest = [s for s in slides if s.slide_id not in tested]
    if not rest:
        raise ManifestError("all sites are held out; nothing is left to train on")
    validating = _chosen(rest, val, seed, by_site=False)
    return Splits((_fold(slides, tested, validating),), {"sites": sorted(sites), "val": val, "seed": seed})


def k_folds(slides: Sequence[SlideToSplit], folds: int, val: float, *, seed: int) -> Splits:
    """Test every slide (or every whole site) in exactly one fold; of those not tested a share ``val`` validates."""
    _require_one_site_per_group(slides)
    units = _units(slides, folds, seed, by_site=any(s.site for s in slides))
    made = []
    for k in range(folds):
        tested = {s.slide_id for s, unit in zip(slides, units, strict=True) if unit == k}
        rest = [s for s in slides if s.slide_id not in tested]
        made.append(_fold(slides, tested, _chosen(rest, val, seed + 1 + k, by_site=False)))
    return Splits(tuple(made), {"folds": folds, "val": val, "seed": seed})


def with_validation_share(
    records: Sequence[SlideRecord], labels: Mapping[str, str | None], share: float, *, seed: int
) -> tuple[SlideRecord, ...]:
    """Move a share of the labelled training slides to split ``val``: whole patients, labels in proportion."""
    train = [
        SlideToSplit(r.slide_id, r.patient_id or r.slide_id, label)
        for r in records
        if r.split == "train" and (label := labels[r.slide_id])
    ]
    chosen = _chosen(train, share, seed, by_site=False)
    return tuple(r.model_copy(update={"split": "val"}) if r.slide_id in chosen else r for r in records)


def joined_groups(slide_ids: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the connected component of each slide, named after its first slide; the pairs are the edges."""
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


def _chosen(slides: Sequence[SlideToSplit], share: float, seed: int, *, by_site: bool) -> set[str]:
    """Choose a share of the slides, in whole groups (or sites), their strata in proportion."""
    if share <= 0:
        return set()
    groups = len({s.site if by_site else s.group for s in slides})
    if groups < 2:
        raise ManifestError(
            f"{groups} {'site' if by_site else 'patient or group of copies'} cannot be divided; add slides, or ask for "
            "fewer splits"
        )
    off = {k: abs(max(1, round(share * k)) / k - share) for k in range(2, min(MOST_UNITS, groups) + 1)}
    units = min(off, key=lambda k: (0.0 if off[k] <= CLOSE_ENOUGH else off[k], k))
    take = min(units - 1, max(1, round(share * units)))
    dealt = _units(slides, units, seed, by_site=by_site)
    return {s.slide_id for s, unit in zip(slides, dealt, strict=True) if unit < take}


def _units(slides: Sequence[SlideToSplit], units: int, seed: int, *, by_site: bool) -> NDArray[np.intp]:
    """Return the number of the unit that each slide is dealt to."""
    from sklearn.model_selection import StratifiedGroupKFold

    keys, strata = [s.site if by_site else s.group for s in slides], [s.stratum for s in slides]
    if units > len(set(keys)):
        what = "sites" if by_site else "patients (or slides without one)"
        raise ManifestError(f"{units} folds of {len(set(keys))} {what}; ask for at most that many")
    if units > max(Counter(strata).values()):
        strata = [""] * len(slides)  # the splitter refuses this many units for these strata: only groups count
    dealt = np.empty(len(slides), np.intp)
    splitter = StratifiedGroupKFold(units, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # It warns of strata that have fewer slides than there are units, and spreads them as far as possible.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, chosen) in enumerate(splitter.split(keys, strata, keys)):
            dealt[chosen] = number
    return dealt


def _fold(slides: Sequence[SlideToSplit], tested: set[str], validating: set[str]) -> dict[str, Split]:
    names = [s.slide_id for s in slides]
    return {name: "test" if name in tested else "val" if name in validating else "train" for name in names}


def _require_one_site_per_group(slides: Sequence[SlideToSplit]) -> None:
    torn = _torn_groups((s.group, s.site) for s in slides)
    if torn:
        shown = [f"{group} ({', '.join(sorted(sites))})" for group, sites in sorted(torn.items())[:SHOWN]]
        raise ManifestError(
            f"patients or copies with slides of two sites: {', '.join(shown)}; correct the manifest, or make the "
            "splits without sites"
        )


def _torn_groups(values: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return the groups that have several values, with these values."""
    found: dict[str, set[str]] = {}
    for group, value in values:
        found.setdefault(group, set()).add(value)
    return {group: several for group, several in found.items() if len(several) > 1}
