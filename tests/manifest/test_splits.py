"""Parts: nobody in two of them, in proportion, the same for a seed, and unchanged since they were saved."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.errors import ManifestError
from wsi_ips.manifest import Splits, read_splits, write_splits
from wsi_ips.manifest.make_splits import SlideToSplit, fixed_splits, held_out_sites, joined_groups, k_folds


def cohort(patients: int, *, slides: int = 3, sites: int = 0) -> list[SlideToSplit]:
    """Every third patient is positive; a patient's slides have one label and one site."""
    return [
        SlideToSplit(f"p{p}s{s}", f"p{p}", "tumor" if p % 3 == 0 else "normal", f"site{p % sites}" if sites else "")
        for p in range(patients)
        for s in range(1 + p % slides)
    ]


def whole(members: list[SlideToSplit], fold: dict[str, str]) -> bool:
    """Whether each group is in one part."""
    parts: dict[str, set[str]] = {}
    for member in members:
        parts.setdefault(member.group, set()).add(fold[member.slide_id])
    return all(len(found) == 1 for found in parts.values())


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


@pytest.mark.parametrize("ending", ["json", "csv"])
@pytest.mark.parametrize("folds", [1, 3])
def test_written_and_read_back(tmp_path, ending, folds):
    members = cohort(20)
    splits = k_folds(members, 3, 0.1, seed=1) if folds > 1 else fixed_splits(members, (0.7, 0.1, 0.2), seed=1)
    path = tmp_path / f"splits.{ending}"
    write_splits(path, splits)
    again = read_splits(path)
    assert again.folds == splits.folds
    assert again.hash == splits.hash
    assert splits.hash in path.read_text()


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_a_file_that_was_changed_is_refused_until_its_hash_is_taken_out(tmp_path, ending):
    path = tmp_path / f"splits.{ending}"
    write_splits(path, Splits(({"a": "train", "b": "test"},)))
    text = path.read_text().replace("test", "train")
    path.write_text(text)
    with pytest.raises(ManifestError, match="changed since they were saved"):
        read_splits(path)
    path.write_text(text.replace(Splits(({"a": "train", "b": "test"},)).hash, ""))
    assert read_splits(path).folds == ({"a": "train", "b": "train"},)


def test_a_csv_from_elsewhere(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("slide_id,split,comment\na,train,x\nb,,y\nc,test,z\n")
    assert read_splits(path).folds == ({"a": "train", "c": "test"},)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.json", "{}", "not made by"),
        ("s.json", "no", "not made by"),
        ("s.json", '{"folds": []}', "no fold"),
        ("s.json", '{"folds": [{"a": "training"}]}', "`training` is not a split"),
        ("s.csv", "a,b\n1,2\n", "columns `slide_id`"),
        ("s.csv", "slide_id,split\na,train\na,test\n", "`a` is there twice"),
        ("s.csv", "slide_id,split\na,Test\n", "`Test` is not a split"),
    ],
)
def test_files_that_are_no_splits(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message) as error:
        read_splits(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_file_and_another_ending(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read"):
        read_splits(tmp_path / "none.json")
    with pytest.raises(ManifestError, match=r"\.json or \.csv"):
        write_splits(tmp_path / "s.txt", Splits(({"a": "train"},)))


def test_settings_are_kept(tmp_path):
    path = tmp_path / "s.json"
    write_splits(path, k_folds(cohort(12), 3, 0.1, seed=7))
    assert json.loads(path.read_text())["settings"] == {"folds": 3, "val": 0.1, "seed": 7}
    assert read_splits(path).settings["seed"] == 7
