"""Groups of tiles come evenly from all slides, and each is known from its number alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.cohort import textured_slide
from wsi_ips.errors import TrainingError
from wsi_ips.training.tile_batches import TileBatches

SIZES = {"small": (3, 1), "wide": (7, 4), "large": (12, 9)}  # 3, 28 and 108 tiles


def batches(group_tiles: int = 10, slide_tiles: int = 4, seed: int = 1) -> TileBatches:
    slides = [textured_slide(name, label=0, seed=0, columns=c, rows=r) for name, (c, r) in SIZES.items()]
    return TileBatches(slides, group_tiles=group_tiles, slide_tiles=slide_tiles, seed=seed)


def rows(found: TileBatches, groups: range) -> list[tuple[str, int]]:
    """Slide and tile of every row of some groups."""
    return [(r.slide_id, int(t)) for group in groups for r in found.requests(group) for t in r.wanted]


def test_every_group_is_full_and_does_not_depend_on_the_groups_read_before():
    one_by_one = [rows(batches(), range(group, group + 1)) for group in range(12)]
    assert [len(group) for group in one_by_one] == [10] * 12
    assert rows(batches(), range(12)) == [row for group in one_by_one for row in group]


def test_slots_name_the_slides():
    found = batches()
    for request in found.requests(3):
        assert found.slide_ids[request.slot] == request.slide_id


def test_slides_of_any_size_give_the_same_number_of_tiles_and_none_twice_before_all():
    counts = Counter(rows(batches(), range(11)))  # 110 tiles in rounds of 3 + 4 + 4
    slides = Counter(name for name, _ in counts.elements())
    assert slides == {"small": 30, "wide": 40, "large": 40}
    assert {counts[row] for row in counts if row[0] == "small"} == {10}
    assert all(count <= 2 for (name, _), count in counts.items() if name == "wide")  # 40 of 28
    assert all(count == 1 for (name, _), count in counts.items() if name == "large")


def test_all_tiles_come_in_time():
    assert {tile for name, tile in rows(batches(), range(90)) if name == "large"} == set(range(108))


def test_another_seed_gives_other_tiles_in_another_order():
    assert rows(batches(seed=1), range(5)) != rows(batches(seed=2), range(5))


def test_only_the_wanted_tiles_are_given():
    slide = textured_slide("s", label=0, seed=0).only(np.array([2, 3, 5, 7, 11], np.int32))
    found = TileBatches([slide], group_tiles=4, slide_tiles=8, seed=0)
    assert {tile for _, tile in rows(found, range(5))} == {2, 3, 5, 7, 11}


def test_fewer_tiles_than_a_group_are_refused_with_both_numbers():
    with pytest.raises(TrainingError, match="139 tiles in 3 slides are fewer than the 140 that one step"):
        batches(group_tiles=140)
