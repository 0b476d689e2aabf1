"""Reader over pixels in memory: for tests, and for arrays of other programs."""

from __future__ import annotations

from collections.abc import Sequence

from wsi_ips.errors import UnsupportedSlideError
from wsi_ips.geometry import Box, Point, Scale, Size
from wsi_ips.slides.base import RGB, BaseReader, SlideInfo, level_pixel, require_inside


class ArrayReader(BaseReader):
    """A slide whose levels are arrays.

    Parameters
    ----------
    levels
        uint8, each of shape (height, width, 3), finest first.
    mpp
        µm per level-0 pixel, None for a slide without a scale.
    name
        Name for messages.
    bounds
        Scanned part in level-0 pixels; None is the whole slide.

    Raises
    ------
    UnsupportedSlideError
        A level is not 8-bit RGB.
    """

    def __init__(
        self, levels: Sequence[RGB], mpp: Scale | None, name: str = "array", bounds: Box | None = None
    ) -> None:
        for level in levels:
            if level.dtype != "uint8" or level.ndim != 3 or level.shape[2] != 3:
                raise UnsupportedSlideError(
                    f"slide {name}: a level of shape {level.shape}, {level.dtype} is not 8-bit RGB"
                )
        self._levels = list(levels)
        sizes = tuple(Size(level.shape[1], level.shape[0]) for level in levels)
        self.info = SlideInfo(
            name=name,
            reader="array",
            level_sizes=sizes,
            mpp=mpp,
            mpp_source="given" if mpp else "none was given",
            bounds=bounds or Box(0, 0, *sizes[0]),
            properties={},
            pixels_by="memory",
        )

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """See :class:`wsi_ips.slides.base.SlideReader`."""
        require_inside(self.info, location_px0, level, size_px, closed=self._closed)
        x, y = level_pixel(self.info, location_px0, level, size_px)
        return self._levels[level][y : y + size_px.height, x : x + size_px.width].copy()
