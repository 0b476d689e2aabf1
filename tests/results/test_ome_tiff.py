"""OME-TIFF of a package: what other readers get back is what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
import tiffslide

from tests.results.planted import of_grid
from wsi_ips.geometry import Scale
from wsi_ips.results import ome_tiff


def test_ome_tiff_is_a_pyramid_with_scale_channels_and_nothing_where_there_is_no_tile(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((301, 517)).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    maps = of_grid(values, mpp=Scale(0.25, 0.26))
    path = tmp_path / "a.ome.tif"
    ome_tiff.write_ome_tiff(path, maps)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        assert tiff.is_ome
        assert tiff.series[0].axes == "CYX"
        levels = [level.asarray() for level in tiff.series[0].levels]
        assert (len(tiff.pages), tiff.pages[0].is_tiled, len(tiff.pages[0].subifds)) == (2, True, 4)
        image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
    assert [level.shape for level in levels] == [(2, 304 >> k, 528 >> k) for k in range(5)]
    assert [channel["Name"] for channel in image["Pixels"]["Channel"]] == ["probability", "attention"]
    assert (image["Pixels"]["PhysicalSizeX"], image["Pixels"]["PhysicalSizeY"]) == pytest.approx((16, 16.64))
    assert np.array_equal(levels[0][0, :301, :517], values, equal_nan=True)
    assert np.isnan(levels[0][:, 301:]).all()
    block = levels[0][0, :16, :16]
    assert levels[4][0, 0, 0] == pytest.approx(np.nanmean(block), rel=1e-5)  # by tiles that are known, not by pixels
    slide = tiffslide.TiffSlide(path)
    assert slide.level_count == 5
    assert slide.level_downsamples == pytest.approx((1, 2, 4, 8, 16))
    mpp = (slide.properties["tiffslide.mpp-x"], slide.properties["tiffslide.mpp-y"])
    assert mpp == pytest.approx((16, 16.64), rel=1e-5)
    shown = slide.read_region((0, 0), 2, (40, 30), as_array=True)
    assert np.array_equal(shown[..., 0], levels[2][0, :30, :40], equal_nan=True)
    slide.close()
    with openslide.OpenSlide(path) as other:  # it knows the scale, but decodes no real numbers
        assert float(other.properties["openslide.mpp-x"]) == pytest.approx(16, rel=1e-5)
        assert other.dimensions == (528, 304)


def test_a_level_of_cells_without_tiles_is_unknown_and_one_of_a_single_tile_is_that() -> None:
    values = np.full((1, 5, 9), np.nan, np.float32)
    values[0, 4, 8] = 0.7
    levels = ome_tiff.pyramid(values)
    assert levels[-1].shape == (1, 1, 1)
    assert levels[-1][0, 0, 0] == pytest.approx(0.7)
    assert np.isfinite(levels[1]).sum() == 1
    assert [level.shape for level in ome_tiff.pyramid(np.zeros((1, 1, 1), np.float32))] == [(1, 1, 1)]
