"""Tumour share of tiles: equal to shapely, tile by tile."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st

from wsi_ips.annotations import tumour_fraction


@given(st.integers(0, 10_000))
def test_equals_the_intersection_of_each_box(seed):
    rng = np.random.default_rng(seed)
    blobs = [shapely.Point(*rng.uniform(0, 1000, 2)).buffer(rng.uniform(5, 200)) for _ in range(4)]
    region = shapely.difference(shapely.union_all(blobs[:3]), blobs[3])
    boxes = np.column_stack([rng.uniform(-100, 1000, (30, 2)), rng.uniform(5, 300, (30, 2))])
    expected = [shapely.intersection(region, shapely.box(x, y, x + w, y + h)).area / (w * h) for x, y, w, h in boxes]
    np.testing.assert_allclose(tumour_fraction(region, boxes), expected, atol=1e-5)


def test_nothing_annotated_is_zero_everywhere():
    assert tumour_fraction(shapely.Polygon(), np.ones((3, 4))).tolist() == [0, 0, 0]
    assert tumour_fraction(shapely.box(0, 0, 9, 9), np.empty((0, 4))).shape == (0,)
