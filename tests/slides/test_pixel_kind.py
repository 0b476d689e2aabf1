"""Pixels that are not 8-bit RGB would be another picture: refused, whoever could open the file."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from wsi_ips.errors import UnsupportedSlideError
from wsi_ips.slides import open_slide


@pytest.mark.parametrize(
    ("shape", "kind", "photometric", "said"),
    [
        ((256, 320), np.uint8, "minisblack", "1 x uint8"),
        ((256, 320), np.uint16, "minisblack", "1 x uint16"),
        ((256, 320, 3), np.uint16, "rgb", "3 x uint16"),
    ],
    ids=["grey", "16-bit grey", "16-bit RGB"],
)
@pytest.mark.parametrize("reader", ["auto", "openslide", "tiffslide"])
def test_other_pixels_are_refused_by_every_reader(tmp_path, shape, kind, photometric, said, reader):
    path = tmp_path / "other.tif"
    tifffile.imwrite(path, np.ones(shape, kind), tile=(128, 128), photometric=photometric, compression="deflate")
    with pytest.raises(UnsupportedSlideError, match=rf"slide other\.tif: .*({said}|not a format OpenSlide knows)"):
        open_slide(path, reader=reader)
