"""Slide readers: their base class, header facts, rules that all readers share, and a reader of arrays in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from numpy.typing import NDArray

from wsi_ips.errors import RegionReadError, ResolutionError, UnsupportedSlideError
from wsi_ips.geometry import Box, Point, Pyramid, Scale, Size

if TYPE_CHECKING:
    from wsi_ips.slides.pool import TileCache

RGB = NDArray[np.uint8]  # pixels, shape (height, width, 3), 0-255
SLACK = 1e-6  # rounding error allowed when level-0 pixels are divided by a downsample
MPP_RANGE = (0.1, 20.0)  # plausible µm/px of a slide
PRINT_DPI = (72, 96, 150, 300, 600, 1200, 2400)  # what software writes that knows no scale: 352.8 µm/px is 72 dpi
MOST_SIDE = 2**22  # longest side of a slide, pixels: a metre at 0.24 µm/px
MAGNIFICATION_UM = 10.0  # µm/px times magnification: 0.25 at 40x, 0.5 at 20x
CONTRADICTS = 1.5  # factor between scale and magnification from which a person should look
OME_UNITS_UM = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "\u212b": 1e-4}
OME_UNITS_UM |= {"\u00c5": 1e-4, "pm": 1e-6, "in": 25_400.0}


@dataclass(frozen=True)
class SlideInfo:
    """Header facts of one slide."""

    name: str  # file name, used in messages
    reader: str  # library that opened the file: `openslide`, `tiffslide` or `array`. Level numbers belong to it
    level_sizes: tuple[Size, ...]  # size in pixels of each level, finest first
    mpp: Scale | None  # µm per level-0 pixel, or None where the file states no plausible scale
    mpp_source: str  # where `mpp` comes from: a property's name, `override`, or the reason why it is None
    bounds: Box  # scanned part of the slide in level-0 pixels (the whole slide where the file states none)
    properties: dict[str, str]  # the file's own metadata, as text
    pixels_by: str  # what decodes the pixels, and why, e.g. `direct: JPEG tiles of 256 x 256 px, YCbCr`

    @property
    def size_px0(self) -> Size:
        """Size of level 0."""
        return self.level_sizes[0]

    def downsample(self, level: int) -> Scale:
        """Return the level-0 pixels per pixel of a level; needs no µm/px."""
        return Scale(*self.level_sizes[0]).over(Scale(*self.level_sizes[level]))

    @property
    def pyramid(self) -> Pyramid:
        """Level sizes with the base scale; raises ResolutionError where the slide has none."""
        if self.mpp is None:
            raise ResolutionError(
                f"slide {self.name}: no µm/px ({self.mpp_source}); nothing is guessed: write the scanner's "
                "µm/px into column `mpp` of the manifest"
            )
        return Pyramid(self.level_sizes, self.mpp)


class SlideReader:
    """An open slide. A subclass defines ``info`` and ``read_region``; the rest has defaults.

    Every subclass passes ``tests/contracts/test_reader_contract.py``.
    """

    info: SlideInfo
    owns_source = False  # whether it keeps reading from the `ByteSource` it was opened with, and closes it
    bytes_held = 0  # decoded pixels that stay in memory while it is open
    _closed = False

    def read_region(self, location_px0: Point, level: int, size_px: Size) -> RGB:
        """Read ``size_px`` pixels of one level.

        Returns uint8, shape (height, width, 3), never shared with another call. Parts that were not scanned
        (transparent in the file) have the file's background colour, else white.

        Parameters
        ----------
        location_px0
            Top-left corner in level-0 pixels of the full slide.

        Raises
        ------
        RegionReadError
            The region is not inside the level, or it cannot be read from the file.
        """
        raise NotImplementedError

    def shrinks(self, location_px0: Point, level: int, size_px: Size, factor: int) -> bool:  # noqa: ARG002
        """Return whether :meth:`read_into` can shrink this region by ``factor`` (above 1) while it decodes."""
        return False

    def read_into(self, out: RGB, location_px0: Point, level: int, *, factor: int = 1) -> None:
        """Read a region of ``factor`` times the size of ``out`` (contiguous) and shrink it while decoding.

        ``factor`` is 1, or one for which :meth:`shrinks` is true; raises as :meth:`read_region`.
        """
        if factor != 1:
            raise ValueError(f"slide {self.info.name}: {self.info.reader} does not shrink while it decodes")
        out[:] = self.read_region(location_px0, level, Size(out.shape[1], out.shape[0]))

    def share(self, cache: TileCache) -> None:
        """Keep decoded tiles in a cache that is shared with other slides; by default does nothing."""

    def close(self) -> None:
        """Release the file; later reads raise RegionReadError."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def trusted_mpp(properties: Mapping[str, str], *, prefix: str, size: Size) -> tuple[Scale | None, str]:
    """Return the scale a file states for level 0 of a ``size`` and where, or None and the reason.

    ``PhysicalSizeX`` and ``Y`` of OME-XML come first, then ``PREFIX.mpp-x`` and ``mpp-y``, which may be resolution
    tags: programs that write the former often leave a print resolution in the latter.
    """
    found, name = _ome_scale(properties.get("tiff.ImageDescription", ""), size), "OME-XML PhysicalSize"
    if found is None:
        names = [f"{prefix}.mpp-x", f"{prefix}.mpp-y"]
        texts = [properties.get(name, "") for name in names]
        if not all(texts):
            return None, "the file states none"
        try:
            found, name = Scale(*(float(text) for text in texts)), f"{prefix}.mpp"
        except ValueError:
            return None, f"{names[0]} = {texts[0]} is not a number"
    low, high = MPP_RANGE
    for dpi in PRINT_DPI:
        if abs(found.x * dpi / 25_400 - 1) < 1e-3:
            return None, f"{name} = {found.x:.6g} is {dpi} dpi, a default for print, not the scale of a slide"
    if not all(math.isfinite(v) and low <= v <= high for v in found):
        return None, f"{name} = {found.x:.6g} is not plausible for a slide ({low:g} to {high:g} µm/px)"
    return found, name


def _ome_scale(description: str, size: Size) -> Scale | None:
    """Return the scale that OME-XML states for the image of a size, or for its only image, else None."""
    if "<OME" not in description and ":OME" not in description:
        return None
    try:
        images = [node for node in fromstring(description).iter() if node.tag.rpartition("}")[2] == "Pixels"]
        same = [node for node in images if (node.get("SizeX"), node.get("SizeY")) == tuple(map(str, size))]
        node = same[0] if same or len(images) != 1 else images[0]
        x, y = (
            float(node.attrib[f"PhysicalSize{axis}"]) * OME_UNITS_UM[node.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        )
    except (ParseError, DefusedXmlException, LookupError, ValueError):
        return None
    return Scale(x, y) if min(x, y) > 0 else None


def scale_remark(info: SlideInfo) -> str:
    """Say that the scale in the header contradicts its magnification (Aperio's ``AppMag``); empty where it does not."""
    try:
        magnification = float(info.properties.get("aperio.AppMag", ""))
        ratio = info.mpp.x * magnification / MAGNIFICATION_UM if info.mpp else 1.0
    except ValueError:
        return ""
    if magnification <= 0 or info.mpp_source == "override" or 1 / CONTRADICTS < ratio < CONTRADICTS or info.mpp is None:
        return ""
    return (
        f"the header says {info.mpp.x:.4g} µm/px and {magnification:g}x, which is about "
        f"{MAGNIFICATION_UM / magnification:.2g} µm/px: check the scale, and give the right one in column `mpp`"
    )


def damaged(
    info: SlideInfo, location_px0: Point, level: int, size_px: Size, error: Exception, remedy: str = ""
) -> RegionReadError:
    """Return the error for a region that cannot be read from the file."""
    return RegionReadError(
        f"slide {info.name}: cannot read {size_px.width} x {size_px.height} px of level {level} at level-0 "
        f"{tuple(location_px0)}: {said(error)}; the file is damaged there{remedy}"
    )


def said(error: Exception) -> str:
    """Return the text of a library's error, with its kind where the text alone says little (``KeyError: 'x'``)."""
    is_terse = isinstance(error, ArithmeticError | AssertionError | AttributeError | LookupError | TypeError)
    return f"{type(error).__name__}: {error}" if is_terse or not str(error) else str(error)


def level_pixel(info: SlideInfo, location_px0: Point, level: int, size_px: Size) -> Point:
    """Return the pixel of a level nearest to a level-0 position from which a region still fits into the level."""
    downsample, whole = info.downsample(level), info.level_sizes[level]
    x, y = round(location_px0.x / downsample.x), round(location_px0.y / downsample.y)
    return Point(min(x, whole.width - size_px.width), min(y, whole.height - size_px.height))


def level0_position(info: SlideInfo, pixel: Point, level: int) -> Point:
    """Return a level-0 position that :func:`level_pixel` maps back to a pixel of a level.

    It is the first level-0 pixel that begins within the level's pixel, so that readers that round down (OpenSlide)
    return to it too. Where a level is less than twice as coarse as level 0, that position may be nearer to the next
    pixel of the level; then the one before is returned.
    """
    downsample = info.downsample(level)
    x, y = (_first_px0(at, factor) for at, factor in zip(pixel, downsample, strict=True))
    return Point(x, y)


def require_inside(info: SlideInfo, location_px0: Point, level: int, size_px: Size, *, closed: bool) -> None:
    """Raise RegionReadError for a region that leaves its level, an unknown level, or a closed slide."""
    if closed:
        raise RegionReadError(f"slide {info.name}: read after it was closed")
    if not 0 <= level < len(info.level_sizes):
        raise RegionReadError(f"slide {info.name}: no level {level}; it has {len(info.level_sizes)}")
    downsample, (width, height) = info.downsample(level), info.level_sizes[level]
    inside = (
        min(location_px0) >= 0 < min(size_px)
        and math.floor(location_px0.x / downsample.x + SLACK) + size_px.width <= width
        and math.floor(location_px0.y / downsample.y + SLACK) + size_px.height <= height
    )
    if not inside:
        raise RegionReadError(
            f"slide {info.name}: region of {size_px.width} x {size_px.height} px at level-0 {tuple(location_px0)} "
            f"is not inside level {level} ({width} x {height} px)"
        )


def _first_px0(pixel: int, downsample: float) -> int:
    first = math.ceil(pixel * downsample - SLACK)
    return first if round(first / downsample) == pixel else first - 1


class ArrayReader(SlideReader):
    """A slide whose levels (finest first) are arrays in memory: for tests, and for pixels of other programs."""

    def __init__(
        self, levels: Sequence[RGB], mpp: Scale | None, name: str = "array", bounds: Box | None = None
    ) -> None:
        for level in levels:
            if level.dtype != "uint8" or level.ndim != 3 or level.shape[2] != 3:
                raise UnsupportedSlideError(f"slide {name}: a level is {level.shape} {level.dtype}, not 8-bit RGB")
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
        """See :class:`SlideReader`."""
        require_inside(self.info, location_px0, level, size_px, closed=self._closed)
        x, y = level_pixel(self.info, location_px0, level, size_px)
        return self._levels[level][y : y + size_px.height, x : x + size_px.width].copy()
