"""What a slide reader is: the header facts of a slide and three methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ResolutionError
from wsi_ips.geometry import Box, Point, Pyramid, Scale, Size, level_downsample

RGB = NDArray[np.uint8]
"""Pixels, shape (height, width, 3), 0-255."""


@dataclass(frozen=True)
class SlideInfo:
    """Header facts of one slide.

    Attributes
    ----------
    name
        What messages call the slide: its file name.
    reader
        Which reader opened it: ``openslide``, ``tiffslide`` or ``array``.
    level_sizes
        Size in pixels of each level, finest first. Level numbers belong to this reader only.
    mpp
        µm per level-0 pixel, or None where the file states no scale that can be believed.
    mpp_source
        Where ``mpp`` comes from: a property's name, ``override``, or the reason why it is None.
    bounds
        Scanned part of the slide in level-0 pixels (the whole slide where the file states none).
    properties
        The file's own metadata, as text.
    pixels_by
        Who decodes the pixels, and why, e.g. ``direct: JPEG tiles of 256 x 256 px, YCbCr``.
    """

    name: str
    reader: str
    level_sizes: tuple[Size, ...]
    mpp: Scale | None
    mpp_source: str
    bounds: Box
    properties: dict[str, str]
    pixels_by: str

    @property
    def size_px0(self) -> Size:
        """Size of level 0."""
        return self.level_sizes[0]

    def downsample(self, level: int) -> Scale:
        """Level-0 pixels per pixel of a level; known also where the scale is not."""
        return level_downsample(self.size_px0, self.level_sizes[level])

    @property
    def pyramid(self) -> Pyramid:
        """Level sizes with the base scale.

        Raises
        ------
        ResolutionError
            The slide has no scale that can be believed.
        """
        if self.mpp is None:
            raise ResolutionError(
                f"slide {self.name}: no µm/px ({self.mpp_source}); nothing is guessed: write the scanner's "
                "µm/px into column `mpp` of the manifest"
            )
        return Pyramid(self.level_sizes, self.mpp)


@runtime_checkable
class SlideReader(Protocol):
    """An open slide. Every implementation passes ``tests/contracts/test_reader_contract.py``."""

    @property
    def info(self) -> SlideInfo:
        """Header facts."""
        ...

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """Read pixels of one level.

        Parameters
        ----------
        location_px0
            Top-left corner in level-0 pixels of the full slide.
        level
            Level to read.
        size_px
            Size in pixels of that level.

        Returns
        -------
        numpy.ndarray
            uint8, shape (height, width, 3), never shared with another call. Parts that the scanner left
            out (transparent in the file) have the file's background colour, else white.

        Raises
        ------
        RegionReadError
            The region is not inside the level, or the file cannot deliver it.
        """
        ...

    def close(self) -> None:
        """Release the file; later reads raise RegionReadError."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: Any) -> None: ...
