"""The index: tiles where the tissue is, with their truth, also where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from wsi_ips.errors import ResolutionError, TileIndexError
from wsi_ips.geometry import Box, Scale
from wsi_ips.slides import ArrayReader
from wsi_ips.tiles.index import IndexOrigin, TileRules, build_index
from wsi_ips.tiles.store import read_header, read_index, write_index
from wsi_ips.tissue.mask import TissueMask

MPP = Scale(0.5, 0.25)


def index_of(mask: np.ndarray, *, region=None, bounds=None, mpp=MPP, minimum=0.5):
    """Tiles of 20 µm on a slide of 600 x 400 px; the mask has one pixel per 100 px0."""
    reader = ArrayReader([np.zeros((400, 600, 3), np.uint8)], mpp, bounds=bounds)
    tissue = TissueMask(mask, Scale(600 / mask.shape[1], 400 / mask.shape[0]), 0.1, "drawn")
    return build_index(
        reader.info,
        tissue,
        TileRules(1.0, 20, 20, minimum),
        IndexOrigin("s", "i", "f"),
        tumour_region=region,
    )


def test_only_tiles_with_tissue_are_kept_with_the_scale_of_each_axis():
    mask = np.zeros((4, 6), bool)
    mask[1, 2] = True  # level-0 x 200-300, y 100-200
    index = index_of(mask)
    assert index.plan.read_size == (40, 80)  # 20 µm at 0.5 and at 0.25 µm/px
    boxes = [tuple(box) for box in index.boxes_px0.tolist()]
    # Columns start at multiples of 40, rows of 80: of those that touch the square, these hold half of it or more.
    assert boxes == [(200, 80, 40, 80), (240, 80, 40, 80), (200, 160, 40, 80), (240, 160, 40, 80)]
    np.testing.assert_allclose(index.tissue_fraction, [0.75, 0.75, 0.5, 0.5])


def test_tumour_fraction_is_that_of_the_tile():
    region = shapely.box(200, 80, 220, 160)  # left half of the tile at (200, 80)
    index = index_of(np.ones((4, 6), bool), region=region)
    at = (index.x == 200) & (index.y == 80)
    np.testing.assert_allclose(index.tumour_fraction[at], 0.5)
    assert index.tumour_fraction[~at].sum() == 0


def test_unknown_truth_is_none_not_zero():
    assert index_of(np.ones((4, 6), bool)).tumour_fraction is None


def test_no_tissue_gives_no_tile_also_with_a_limit_of_zero():
    assert len(index_of(np.zeros((4, 6), bool), minimum=0.0)) == 0


def test_the_grid_begins_at_the_bounds():
    index = index_of(np.ones((4, 6), bool), bounds=Box(33, 17, 300, 300))
    assert (index.x.min(), index.y.min()) == (33, 17)
    assert (index.x + 40).max() <= 333


def test_a_slide_without_a_scale_is_refused_with_the_column_to_fill():
    with pytest.raises(ResolutionError, match=r"array.*`mpp` of the manifest"):
        index_of(np.ones((4, 6), bool), mpp=None)


@pytest.mark.parametrize("name", ["tiles.zarr", "tiles.h5"])
@pytest.mark.parametrize("region", [None, shapely.box(200, 80, 220, 160)])
def test_the_header_is_the_index_without_its_tiles(tmp_path, name, region):
    index = index_of(np.ones((4, 6), bool), region=region)
    write_index(tmp_path / name, index)
    header = read_header(tmp_path / name, "s")
    assert len(header) == 0
    left_out = {"tiles"}
    assert {k: v for k, v in header.to_attributes().items() if k not in left_out} == {
        k: v for k, v in read_index(tmp_path / name, "s").to_attributes().items() if k not in left_out
    }
    with pytest.raises(TileIndexError, match="slide t: none in"):
        read_header(tmp_path / name, "t")
