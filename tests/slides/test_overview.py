"""A slide at two scales: pixel on pixel, and as an area average of the same level."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.geometry import Scale
from wsi_ips.slides import ArrayReader, open_slide, read_overview, read_thumbnail


def smooth(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [120 + 60 * np.sin(x / 37 + c) + 40 * np.cos(y / 53 - c) for c in range(3)]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("width", "height", "mpp"), [(1600, 1280, Scale(0.5, 0.5)), (1571, 1283, Scale(0.47, 0.52))])
def test_fine_and_coarse_cover_the_slide_and_fit(width, height, mpp):
    reader = ArrayReader([smooth(width, height)], mpp)
    overview = read_overview(reader, 8.0, 4.0)
    rows, columns = overview.thumbnail.shape[:2]
    assert overview.factor == 2
    assert overview.fine.shape[:2] == (2 * rows, 2 * columns)
    assert columns * overview.mpp.x == pytest.approx(width * mpp.x)
    assert overview.mpp.x == pytest.approx(8.0, rel=0.06)
    plain, _ = read_thumbnail(reader, overview.mpp.x)
    if plain.shape == overview.thumbnail.shape:
        assert np.abs(plain.astype(int) - overview.thumbnail).mean() < 1


def test_a_slide_coarser_than_asked_is_read_as_it_is():
    reader = ArrayReader([smooth(300, 200)], Scale(30.0, 30.0))
    overview = read_overview(reader, 8.0, 4.0)
    assert overview.factor == 1
    assert overview.thumbnail.shape == (200, 300, 3)


def test_what_the_decoder_shrinks_is_what_openslide_shows(real_data):
    path = real_data / "slides" / "demo_tumor_slide.tif"
    with open_slide(path) as ours, open_slide(path, reader="openslide") as theirs:
        a, b = read_overview(ours, 8.0, 4.0), read_overview(theirs, 8.0, 4.0)
    assert a.thumbnail.shape == b.thumbnail.shape
    assert np.abs(a.fine.astype(int) - b.fine).mean() < 2
