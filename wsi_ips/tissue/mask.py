"""A tissue mask, the share of tissue in any box, the mask as polygons and back, and remarks on odd masks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry.base import BaseGeometry
from skimage.draw import polygon as polygon_pixels
from skimage.measure import find_contours

from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.outline_repair import polygons_of
from wsi_ips.tissue.filters import EIGHT_CONNECTED, Bools, Bytes, extremes
from wsi_ips.tissue.ink import OPAQUE_OD

SIMPLIFIED_PX = 0.25  # largest distance in mask pixels between a simplified outline and the true one
SUPERSAMPLED = 4
BAND_PX = 64
LITTLE_MM2 = 0.5
MOST_OF_SLIDE = 0.9
MANY_PIECES = 60
CUT_MM = 1.0  # length of tissue along the border of the slide that is not worth a remark
MUCH_PEN, MUCH_BLACK = 0.02, 0.05  # shares of the slide
# Beginning of each remark and its weight; others weigh 5
WEIGHTS = {
    "no tissue": 100,
    "almost everything": 60,
    "no rung": 50,
    "black": 40,
    "little tissue": 30,
    "cut by the border": 20,
    "many pieces": 15,
    "doubtful": 40,
    "immunohistochemistry": 40,
    "special stain": 40,
    "pen": 10,
}


# What is not a stained section, or not one that a model of H&E knows; shares of the tissue unless stated
DARK_PICTURE, LEAST_BRIGHT = 0.5, 0.02  # shares of the picture that are black, and that let light through
BRIGHT_OD = 240  # sum over the channels, 1/100: as dense as the darkest tissue
COLOURLESS = 0.9  # share that is grey
GREY = 0.15  # largest spread of a grey over the channels, as a share of the densest
DRAWN = 0.5  # share that is exactly uniform, which no camera delivers
LEAST_STAINED, SOME_STAINED = 0.1, 0.3  # shares with a colour of haematoxylin, eosin or DAB; between: a special stain
LEAST_BROWN = 0.05  # brown of DAB beside blue: immunohistochemistry


class AreaSums:
    """Sums of a raster over boxes, computed by integral image; parts of pixels count by their area."""

    def __init__(self, values: NDArray[np.bool_] | NDArray[np.integer], px0_per_px: Scale) -> None:
        self._scale = px0_per_px
        height, width = values.shape
        wide = np.int32 if values.dtype == bool else np.int64
        self._integral = np.zeros((height + 1, width + 1), wide)
        np.cumsum(values, axis=0, dtype=wide, out=self._integral[1:, 1:])
        np.cumsum(self._integral[1:, 1:], axis=1, out=self._integral[1:, 1:])

    def mean(self, boxes_px0: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean over each box x, y, width, height in level-0 pixels, shape (N, 4); outside counts as 0."""
        x, y, width, height = np.asarray(boxes_px0, np.float64).T
        left, right = x / self._scale.x, (x + width) / self._scale.x
        top, bottom = y / self._scale.y, (y + height) / self._scale.y
        inside = self._area(right, bottom) - self._area(left, bottom) - self._area(right, top)
        inside += self._area(left, top)
        return np.asarray(inside / ((right - left) * (bottom - top)))

    def _area(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum left of x and above y, both in pixels.

        The integral image is exact at corners of pixels. Inside a pixel it is bilinear in (x, y), because the raster
        is constant there, so interpolation is exact everywhere.
        """
        height, width = (side - 1 for side in self._integral.shape)
        x, y = np.clip(x, 0, width), np.clip(y, 0, height)
        column = np.minimum(x.astype(np.intp), width - 1)
        row = np.minimum(y.astype(np.intp), height - 1)
        u, v = x - column, y - row
        upper = self._integral[row, column] * (1 - u) + self._integral[row, column + 1] * u
        lower = self._integral[row + 1, column] * (1 - u) + self._integral[row + 1, column + 1] * u
        return np.asarray(upper * (1 - v) + lower * v)


@dataclass(frozen=True)
class Seen:
    """Artefacts on a thumbnail."""

    od: tuple[Bytes, Bytes, Bytes]  # (height, width) optical density of red, green, blue relative to the glass, 1/100
    pen: Bools  # (height, width) ink
    bubble: Bools  # (height, width) air under the coverslip
    black_share: float  # share of the picture that is too dark for tissue
    unsure_share: float = 0.0  # share of the picture that may be ink, but is not left out


@dataclass(frozen=True)
class TissueMask:
    """The tissue of a slide."""

    mask: Bools  # (height, width), True on tissue; covers all of level 0
    px0_per_mask_px: Scale  # level-0 pixels per mask pixel, per axis
    threshold: float  # saturation (0-1) above which a pixel counted as stained
    method: str  # description of how it was found, for people
    rung: str = "drawn"  # name of the method that found it; `drawn` where a person did
    passed: tuple[str, ...] = ()  # methods that were tried before and could not be trusted, with the reason
    seen: Seen | None = None  # artefacts that the segmentation found; None where they were not looked for

    def fraction(self, boxes_px0: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the share of tissue (N,) in boxes x, y, width, height (N, 4), level-0 pixels; outside is glass."""
        return np.asarray(np.clip(self._sums.mean(boxes_px0), 0, 1), np.float32)

    def area_um2(self, mpp: Scale) -> float:
        """Return the tissue area in µm², from the scale of level 0."""
        pixel_um2 = self.px0_per_mask_px.x * mpp.x * self.px0_per_mask_px.y * mpp.y
        return float(np.count_nonzero(self.mask) * pixel_um2)

    @cached_property
    def _sums(self) -> AreaSums:
        return AreaSums(self.mask, self.px0_per_mask_px)


def outline_of(tissue: TissueMask) -> BaseGeometry:
    """Return the outline of a mask in level-0 pixels, simplified to a quarter of a mask pixel; may be empty."""
    padded = np.pad(tissue.mask, 1).astype(np.float32)
    rings = [ring for ring in find_contours(padded, 0.5) if len(ring) >= 4]
    # Row and column of pixel centres of the padded mask; its first pixel is one outside.
    scale = np.array(tissue.px0_per_mask_px)
    loops = [shapely.Polygon((ring[:, ::-1] - 0.5) * scale) for ring in rings]
    if not loops:
        return shapely.Polygon()
    # Nested rings alternate between solid and hole.
    return shapely.make_valid(shapely.simplify(_even_odd(loops), SIMPLIFIED_PX * min(scale)))


def mask_of(region: BaseGeometry, *, px0_size: Size, mask_size: Size, source: str) -> TissueMask:
    """Rasterise a region (level-0 pixels) that a person drew: a pixel is tissue where half of it lies in it."""
    scale = Scale(px0_size.width / mask_size.width, px0_size.height / mask_size.height)
    mask = covered(region, Box(0, 0, *mask_size), scale) >= 0.5
    return TissueMask(mask=mask, px0_per_mask_px=scale, threshold=0.0, method=f"drawn: {source}", rung="drawn")


def covered(region: BaseGeometry, window: Box, px0_per_px: Scale) -> NDArray[np.float32]:
    """Return the share of each pixel of a raster window (height, width) that lies in a region, to a 16th."""
    out = np.empty((window.height, window.width), np.float32)
    scale = np.array(px0_per_px) / SUPERSAMPLED
    corner = np.array([window.x, window.y]) * SUPERSAMPLED
    rings = [
        (np.asarray(ring.coords)[:, :2] / scale - corner - 0.5, value)  # from the middle of a pixel
        for polygon in sorted(polygons_of(region), key=lambda p: -p.area)
        for ring, value in ((polygon.exterior, 1), *((hole, 0) for hole in polygon.interiors))
    ]
    for top in range(0, window.height, BAND_PX):
        height = min(BAND_PX, window.height - top)
        fine = np.zeros((height * SUPERSAMPLED, window.width * SUPERSAMPLED), np.uint8)
        for points, value in rings:
            x, y = points[:, 0], points[:, 1] - top * SUPERSAMPLED
            if y.min() < fine.shape[0] and y.max() >= 0:
                fine[polygon_pixels(y, x, fine.shape)] = value
        parts = fine.reshape(height, SUPERSAMPLED, window.width, SUPERSAMPLED)
        out[top : top + height] = parts.mean(axis=(1, 3), dtype=np.float32)
    return out


def _even_odd(loops: list[shapely.Polygon]) -> BaseGeometry:
    """Return the region inside an odd number of rings that do not cross; rings inside holes are handled by depth."""
    order = sorted(loops, key=lambda loop: -loop.area)
    tree = shapely.STRtree(order)
    points = shapely.points([loop.exterior.coords[0] for loop in order])
    inner, outer = tree.query(points, predicate="within")
    depth = np.bincount(inner[inner != outer], minlength=len(order))
    region: BaseGeometry = shapely.Polygon()
    for level in range(int(depth.max()) + 1):
        rings = shapely.union_all([loop for loop, at in zip(order, depth, strict=True) if at == level])
        region = shapely.difference(region, rings) if level % 2 else shapely.union(region, rings)
    return region


def remarks_on(tissue: TissueMask, mpp: Scale) -> list[str]:
    """Return remarks on an odd mask, worst first; ``mpp`` is µm per level-0 pixel."""
    if tissue.rung == "all":
        return []  # as the recipe asks
    mask, area_mm2 = tissue.mask, tissue.area_um2(mpp) / 1e6
    share = float(mask.mean())
    texts: list[str] = []
    if share == 0:
        texts.append("no tissue found")
    elif share > MOST_OF_SLIDE:
        texts.append(f"almost everything is tissue ({share:.0%})")
    elif area_mm2 < LITTLE_MM2:
        texts.append(f"little tissue ({area_mm2:.3g} mm²)")
    pieces = ndimage.label(mask, structure=EIGHT_CONNECTED)[1]
    if pieces > MANY_PIECES:
        texts.append(f"many pieces ({pieces})")
    step = tissue.px0_per_mask_px.times(mpp)
    along_x, along_y = (np.count_nonzero(mask.take((0, -1), axis)) for axis in (0, 1))
    cut_mm = float(along_x * step.x + along_y * step.y) / 1000  # along which tissue touches the border
    if 0 < share <= MOST_OF_SLIDE and cut_mm > CUT_MM:
        texts.append(f"cut by the border of the slide ({cut_mm:.1f} mm)")
    texts += _about_method(tissue)
    if tissue.seen is not None:
        pen, black = float(tissue.seen.pen.mean()), tissue.seen.black_share
        if black > MUCH_BLACK:
            texts.append(f"black over {black:.0%} of the slide: fluorescence, ink or a scan gap")
        if pen > MUCH_PEN:
            texts.append(f"pen over {pen:.0%} of the slide")
        if tissue.seen.unsure_share > MUCH_PEN * share:
            texts.append(
                f"doubtful pen: {tissue.seen.unsure_share:.1%} of the slide could be ink on tissue, and is kept"
            )
        if (where := mask & ~tissue.seen.pen).any():
            texts += _about_stain(tissue.seen.od, where)
    return sorted(texts, key=lambda text: -suspicion([text]))


def unsuited(tissue: TissueMask, thumbnail: Bytes) -> str:
    """Return why a picture (height, width, 3) of the mask's shape is no section in stain; empty where it may be one."""
    seen = tissue.seen
    if seen is None:
        return ""
    total = sum(plane[::3, ::3].astype(np.int16) for plane in seen.od)
    if seen.black_share > DARK_PICTURE and np.mean(total < BRIGHT_OD) < LEAST_BRIGHT:
        return f"black over {seen.black_share:.0%} of the slide, and nothing is lit from behind: fluorescence?"
    where = tissue.mask & ~seen.pen
    if not where.any():
        return ""
    green = thumbnail[..., 1].astype(np.int16)
    uniform = np.zeros_like(where)
    uniform[1:-1, 1:-1] = (np.diff(green[:-1, 1:-1], axis=0) == 0) & (np.diff(green[1:-1, :-1], axis=1) == 0)
    if (share := float(uniform[where].mean())) > DRAWN:
        return f"{share:.0%} of what would be tissue is of uniform colour: a drawing or a label, not a photograph"
    grey, stained, _ = _colours(seen.od, where)
    if grey > COLOURLESS:
        return f"{grey:.0%} of what would be tissue has no colour: not stained, or scanned in grey"
    if stained < LEAST_STAINED:
        return f"only {stained:.0%} of what would be tissue has a colour of haematoxylin, eosin or DAB"
    return ""


def _about_stain(od: tuple[Bytes, Bytes, Bytes], where: Bools) -> list[str]:
    """Return what makes a section another one than those of haematoxylin and eosin."""
    _, stained, brown = _colours(od, where)
    if brown > LEAST_BROWN:
        return [f"immunohistochemistry? {brown:.0%} is brown beside blue, which a model of H&E has not seen"]
    if stained < SOME_STAINED:
        return [
            f"special stain? only {stained:.0%} has a colour of haematoxylin or eosin, which a model of H&E has seen"
        ]
    return []


def _colours(od: tuple[Bytes, Bytes, Bytes], where: Bools) -> tuple[float, float, float]:
    """Return the shares that are grey, of a colour of haematoxylin, eosin or DAB, and brown beside blue.

    Haematoxylin and eosin absorb green most (Ruifrok and Johnston 2001), DAB blue; a blue counterstain absorbs red
    somewhat more than green. The brown share is 0 where nothing is blue.
    """
    red, green, blue = (plane[where].astype(np.int16) for plane in od)
    low, high = extremes((red, green, blue))
    grey = (high - low) <= GREY * high
    brown = ~grey & (blue >= green) & (10 * green > 11 * red)
    cold = ~grey & (red > green) & (2 * red < 3 * green)
    stained = (~grey & (green >= red) & (green >= blue) | brown | cold) & (high < OPAQUE_OD)
    blues = np.mean(~grey & (10 * red > 9 * green) & (red > blue))
    return float(grey.mean()), float(stained.mean()), float(brown.mean()) if blues > LEAST_BROWN else 0.0


def suspicion(remarks: Sequence[str]) -> int:
    """Return how urgently a slide should be checked; 0 without a remark, higher is worse."""
    return sum(next((weight for start, weight in WEIGHTS.items() if text.startswith(start)), 5) for text in remarks)


def _about_method(tissue: TissueMask) -> list[str]:
    if tissue.rung == "bounded" or (tissue.passed and tissue.passed[-1].startswith(f"{tissue.rung} ")):
        return ["no rung of the segmentation could be trusted: " + "; ".join(tissue.passed)]
    if tissue.rung == "stain":
        return ["found by density alone, not by colour: " + "; ".join(tissue.passed)]
    return []
