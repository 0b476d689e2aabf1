"""Related slides are found whatever relates them, and refused in different splits unless that is allowed."""

from __future__ import annotations

import pytest

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.manifest.splits import related_slides, require_no_leaks

SPLITS = {"a": "train", "b": "train", "c": "test", "d": "test", "e": None}
PATIENTS = {"a": "p", "b": "p", "c": "p", "d": None, "e": "p"}
RECORDS = [SlideRecord(slide_id=n, path=f"{n}.svs", split=SPLITS[n], patient_id=PATIENTS[n]) for n in SPLITS]
CONTENTS = {"a": "x", "b": "y", "d": "x"}
SIMILAR = [("a", "d", 0.0), ("b", "d", 0.125), ("a", "b", 0.2)]


def test_slides_are_related_by_patient_content_and_appearance():
    found = related_slides(RECORDS, CONTENTS, SIMILAR)
    assert [str(pair) for pair in found] == [
        "a and b are of one patient (p)",
        "a and c are of one patient (p)",
        "a and e are of one patient (p)",
        "a and d have the same content",  # so their appearance is not listed again
        "b and d look alike (possibly turned or mirrored) (12% of the hash differs)",
        "a and b look alike (possibly turned or mirrored) (20% of the hash differs)",
    ]


def test_across_splits_all_pairs_in_different_ones_count():
    found = related_slides(RECORDS, CONTENTS, SIMILAR, across=True)
    pairs = {(pair.kind, pair.first, pair.second) for pair in found}
    assert pairs == {("patient", "a", "c"), ("patient", "b", "c"), ("content", "a", "d"), ("thumbnail", "b", "d")}


def test_a_leak_is_refused_until_it_is_allowed():
    with pytest.raises(ManifestError) as caught:
        require_no_leaks(RECORDS, CONTENTS, SIMILAR, ("patient",))
    text = str(caught.value)
    assert "a and d have the same content and are in train and test" in text
    assert "b and d look alike" in text
    assert "of one patient" not in text
    assert "`split.allow: [content, thumbnail]`" in text
    require_no_leaks(RECORDS, CONTENTS, SIMILAR, ("patient", "content", "thumbnail"))
    require_no_leaks(RECORDS[:2], CONTENTS, SIMILAR, ())


def test_of_many_leaks_the_first_ten_are_shown():
    records = [SlideRecord(slide_id=f"s{k}", path=f"{k}.svs", split=("train", "test")[k % 2]) for k in range(24)]
    contents = {r.slide_id: str(int(r.slide_id[1:]) // 2) for r in records}
    with pytest.raises(ManifestError, match="and 2 more") as caught:
        require_no_leaks(records, contents, (), ())
    assert str(caught.value).count("same content") == 10
