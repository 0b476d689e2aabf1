"""Making splits: no patient in two of them, shares and labels in proportion, the same splits for a seed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.make_splits import SlideToSplit, fixed_splits, held_out_sites, joined_groups, k_folds


def cohort(patients: int, *, slides: int = 3, sites: int = 0) -> list[SlideToSplit]:
    """Every third patient is positive; a patient's slides have one label and one site."""
    return [
        SlideToSplit(f"p{p}s{s}", f"p{p}", "tumor" if p % 3 == 0 else "normal", f"site{p % sites}" if sites else "")
        for p in range(patients)
        for s in range(1 + p % slides)
    ]


def whole(slides: list[SlideToSplit], fold: dict[str, str]) -> bool:
    """Tell whether each group is in one split."""
    splits: dict[str, set[str]] = {}
    for slide in slides:
        splits.setdefault(slide.group, set()).add(fold[slide.slide_id])
    return all(len(found) == 1 for found in splits.values())


@settings(max_examples=40, deadline=None)
@given(
    st.integers(12, 90),
    st.integers(1, 5),
    st.integers(0, 2**40),
    st.sampled_from([(0.7, 0.1, 0.2), (6, 2, 2), (0.5, 0, 0.5)]),
)
def test_patients_are_whole_and_every_slide_has_one_part(patients, slides, seed, fractions):
    members = cohort(patients, slides=slides)
    fold = fixed_splits(members, fractions, seed=seed).folds[0]
    assert fold.keys() == {m.slide_id for m in members}
    assert whole(members, fold)
    assert {"train", "test"} <= set(fold.values())


def test_shares_and_strata_are_met():
    members = cohort(300)
    fold = fixed_splits(members, (0.7, 0.1, 0.2), seed=3).folds[0]
    counts = Counter(fold.values())
    for part, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert counts[part] / len(members) == pytest.approx(share, abs=0.03)
        inside = [m for m in members if fold[m.slide_id] == part]
        positive = sum(m.stratum == "tumor" for m in inside) / len(inside)
        assert positive == pytest.approx(sum(m.stratum == "tumor" for m in members) / len(members), abs=0.05)


def test_a_seed_makes_the_same_parts_and_another_makes_others():
    members = cohort(60)
    one, again, other = (fixed_splits(members, (0.7, 0.1, 0.2), seed=s) for s in (1, 1, 2))
    assert one.hash == again.hash != other.hash
    assert one.folds == again.folds


@settings(max_examples=25, deadline=None)
@given(st.integers(10, 60), st.integers(2, 6), st.sampled_from([0.0, 0.15]), st.integers(0, 1000))
def test_each_slide_is_tested_in_exactly_one_fold(patients, folds, val, seed):
    members = cohort(patients)
    splits = k_folds(members, folds, val, seed=seed)
    assert len(splits.folds) == folds
    tested = Counter(name for fold in splits.folds for name, part in fold.items() if part == "test")
    assert tested == Counter(m.slide_id for m in members)
    assert all(whole(members, fold) for fold in splits.folds)
    assert all(("val" in fold.values()) == (val > 0) for fold in splits.folds)


def test_as_many_folds_as_sites_leave_one_site_out():
    members = cohort(40, sites=4)
    site = {m.slide_id: m.site for m in members}
    splits = k_folds(members, 4, 0.1, seed=0)
    tested = [{site[name] for name, part in fold.items() if part == "test"} for fold in splits.folds]
    assert sorted(map(sorted, tested)) == [["site0"], ["site1"], ["site2"], ["site3"]]


def test_a_named_site_is_tested_and_no_other():
    members = cohort(40, sites=4)
    fold = held_out_sites(members, ["site2"], 0.2, seed=0).folds[0]
    assert {m.site for m in members if fold[m.slide_id] == "test"} == {"site2"}
    assert {m.site for m in members if fold[m.slide_id] == "val"} <= {"site0", "site1", "site3"}
    assert "val" in fold.values()


TORN = [SlideToSplit("a", "p", "", "x"), SlideToSplit("b", "p", "", "y")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: held_out_sites(cohort(9, sites=3), ["nowhere"], 0.1, seed=0),
            "no slide of `nowhere`; there are: site0",
        ),
        (lambda: k_folds(cohort(3), 5, 0.0, seed=0), "5 folds of 3 patients"),
        (lambda: k_folds(cohort(9, sites=3), 5, 0.0, seed=0), "5 folds of 3 sites"),
        (lambda: fixed_splits(cohort(1), (0.5, 0.0, 0.5), seed=0), "cannot be divided"),
        (lambda: held_out_sites(cohort(9, sites=1), ["site0"], 0.1, seed=0), "nothing is left to train on"),
        (
            lambda: fixed_splits(TORN, (0.5, 0, 0.5), seed=0),
            r"slides of two sites: p \(x, y\)",
        ),
        (
            lambda: held_out_sites(TORN, ["x"], 0, seed=0),
            "held out and in another: p",
        ),
    ],
)
def test_what_cannot_be_divided_is_said(make, message):
    with pytest.raises(ManifestError, match=message):
        make()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=20))
def test_groups_are_the_connected_components(pairs):
    names = [str(n) for n in range(15)]
    groups = joined_groups(names, [(str(a), str(b)) for a, b in pairs])
    reached = {name: {name} for name in names}
    for _ in names:
        for a, b in pairs:
            union = reached[str(a)] | reached[str(b)]
            for name in union:
                reached[name] = reached[name] | union
    assert all((groups[a] == groups[b]) == (b in reached[a]) for a in names for b in names)
    assert all(groups[name] == min(reached[name], key=int) for name in names)
