"""Pictures of tissue masks and tiles, and the contact sheet that shows them all, the most suspicious first."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.slides import RGB
from wsi_ips.tiles.recall import NotAnalysed

PER_PAGE = 200  # slides per page; a preview is about 40 kB
MOST_LESIONS = 8
STATE_WEIGHTS = {"failed": 1000, "unsuited": 700, "empty": 500}
FLAGGED_WEIGHT = 200  # of a slide whose tissue flags exclude altogether
INK, SOFT_INK, PAPER = (25, 25, 28), (95, 95, 100), (255, 255, 255)
EDGE, TILE, LESION = (0, 120, 60), (30, 90, 200), (210, 0, 0)
BARE = (120, 120, 126)  # tissue in no tile
# Bit and colour of each flag: pen, bubble, fold, blur; the first wins where a tile has several.
FLAG_COLOURS = ((1, (0, 170, 190)), (8, (240, 120, 0)), (4, (230, 190, 0)), (2, (150, 60, 200)))
LONGEST_PX, FOOTER_PX, PREVIEW_PX = 1024, 40, 420
KEY = "green: edge of tissue · blue: tiles · grey: tissue in no tile · pale: glass"
FLAG_KEY = "cyan: pen · orange: bubble · yellow: fold · violet: blur · crossed: left out"


@dataclass(frozen=True)
class SheetEntry:
    """A slide on the sheet."""

    slide_id: str
    state: str
    reason: str
    preview: bytes | None  # JPEG; None where the slide was not tiled
    facts: Mapping[str, Any]  # content of ``tissue/<slide_id>.json``; empty where the slide was not tiled

    @property
    def doubt(self) -> int:
        """Sort key: slides with a higher value come first."""
        lost = sum(bool(lesion["lost_to"]) for lesion in self.lesions)
        doubt = STATE_WEIGHTS.get(self.state, 0) + 50 * lost + int(self.facts.get("suspicion", 0))
        return doubt + round(FLAGGED_WEIGHT * self.flagged_share)

    @property
    def flagged_share(self) -> float:
        """Share of the tissue that flags excluded."""
        return 0.0 if self.not_analysed is None else self.not_analysed.share_flagged

    @property
    def not_analysed(self) -> NotAnalysed | None:
        """Tissue that no tile covers; None where it was not measured."""
        share = self.facts.get("share_not_analysed")
        return None if share is None else NotAnalysed(share, self.facts["not_analysed_mm2"])

    @property
    def lesions(self) -> Sequence[Mapping[str, Any]]:
        """Annotated lesions, largest first."""
        return self.facts.get("lesions") or ()

    @property
    def shown_lesions(self) -> Sequence[Mapping[str, Any]]:
        """Lesions to show: lost ones first, then the largest."""
        return sorted(self.lesions, key=lambda lesion: not lesion["lost_to"])[:MOST_LESIONS]

    @property
    def flagged(self) -> str:
        """Flags with the number of tiles that have them."""
        return ", ".join(f"{flag} {count}" for flag, count in self.facts.get("flagged", {}).items() if count)


def page_name(number: int) -> str:
    """Return the file name of a page, counted from 1."""
    return "index.html" if number == 1 else f"page-{number}.html"


def render_sheet(title: str, entries: Sequence[SheetEntry], not_analysed: str = "") -> dict[str, str]:
    """Return all pages as HTML by file name: no scripts, no external resources, all text escaped.

    ``not_analysed`` is a line on the tissue of all slides that no tile covers.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("wsi_ips.results"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["data_uri"] = lambda jpeg: "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
    ordered = sorted(entries, key=lambda entry: (-entry.doubt, entry.slide_id))
    pages = max(1, math.ceil(len(ordered) / PER_PAGE))
    common = {
        "title": title,
        "not_analysed": not_analysed,
        "total": len(entries),
        "pages": pages,
        "page_name": page_name,
        "doubtful": sum(bool(entry.facts.get("remarks")) or entry.flagged_share > 0 for entry in entries),
        "failed": sum(entry.state == "failed" for entry in entries),
        "empty": sum(entry.state in ("empty", "unsuited") for entry in entries),
        **recall_figures(entries),
    }
    template = environment.get_template("tissue.html.j2")
    return {
        page_name(page): template.render(page=page, slides=ordered[(page - 1) * PER_PAGE : page * PER_PAGE], **common)
        for page in range(1, pages + 1)
    }


def recall_figures(entries: Sequence[SheetEntry]) -> dict[str, float]:
    """Return the number of lesions and lost lesions, and the shares of annotated area in tissue and in tiles."""
    lesions = [lesion for entry in entries for lesion in entry.lesions]
    area = math.fsum(lesion["area_um2"] for lesion in lesions)
    shares = {
        name: math.fsum(lesion["area_um2"] * lesion[name] for lesion in lesions) / area if area else 0.0
        for name in ("in_tissue", "in_tiles")
    }
    return {"lesions": len(lesions), "lost": sum(bool(lesion["lost_to"]) for lesion in lesions), **shares}


@dataclass(frozen=True)
class Tiling:
    """The tiles of a slide, including those that a flag excluded."""

    corners: NDArray[np.int32]  # (N, 2): x, y in level-0 pixels
    flags: NDArray[np.uint8]  # (N,)
    kept: NDArray[np.bool_]  # (N,), True where the tile is in the index
    bounds: Box  # scanned part of the slide, level-0 pixels; its top-left corner is the grid's origin
    stride_px0: Scale  # step of the grid, level-0 pixels

    def raster(self, size: Size, px0_size: Size) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
        """Return, for each pixel of a picture of the whole slide, the state of its tile and if a grid cell begins.

        The state is -1 where there is no tile, else the tile's flags, plus 256 where it was excluded.
        """
        columns = self._cells(size.width, px0_size.width, self.bounds.x, self.stride_px0.x)
        rows = self._cells(size.height, px0_size.height, self.bounds.y, self.stride_px0.y)
        cells = np.full((max(0, int(rows.max())) + 2, max(0, int(columns.max())) + 2), -1, np.int16)
        at = np.rint((self.corners - np.array(self.bounds[:2])) / np.array(self.stride_px0)).astype(np.intp)
        inside = (at[:, 0] < cells.shape[1]) & (at[:, 1] < cells.shape[0])
        state = self.flags.astype(np.int16) + np.where(self.kept, 0, 256).astype(np.int16)
        cells[at[inside, 1], at[inside, 0]] = state[inside]
        new_row, new_column = np.diff(rows, prepend=rows[0]) != 0, np.diff(columns, prepend=columns[0]) != 0
        return cells[rows[:, None], columns[None]], new_row[:, None] | new_column[None]

    @staticmethod
    def _cells(pixels: int, px0: int, origin: int, stride: float) -> NDArray[np.intp]:
        """Return the cell under each pixel of a row; -1, the last and empty cell, outside the grid."""
        at = ((np.arange(pixels) + 0.5) * px0 / pixels - origin) / stride
        return np.maximum(np.floor(at).astype(np.intp), -1)


def draw_tissue(
    thumbnail: RGB,
    mask: NDArray[np.bool_],
    tiling: Tiling,
    *,
    px0_size: Size,
    caption: str,
    lesions: Sequence[NDArray[np.float64]] = (),
) -> Image.Image:
    """Draw a thumbnail with the tissue outline (green), tiles (blue), tissue without tiles (grey), flags and tumour.

    The mask has the thumbnail's height and width; ``lesions`` are outlines of shape (n, 2): x, y in level-0 pixels.
    """
    image = _shrunk(Image.fromarray(thumbnail), _shrinking(thumbnail))
    small = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.asarray(image).copy()
    pixels[~small] = pixels[~small] // 2 + 127
    state, lines = tiling.raster(Size(*image.size), px0_size)
    bare = small & (state < 0)
    pixels[bare] = pixels[bare] // 3 + np.array(BARE, np.uint8) // 3 * 2
    _tint(pixels, state, lines)
    pixels[small & ~ndimage.binary_erosion(small)] = EDGE  # the picture's border counts as outside
    letters, caption = ImageFont.load_default(13), caption.replace("²", "2")  # Pillow's font has no ²
    width = max(720, image.width, math.ceil(letters.getlength(caption)) + 16)
    page = Image.new("RGB", (width, image.height + FOOTER_PX), PAPER)
    page.paste(Image.fromarray(pixels), (0, 0))
    draw = ImageDraw.Draw(page)
    scale = np.array([image.width / px0_size.width, image.height / px0_size.height])
    for outline in lesions:
        points = (outline * scale).ravel().tolist()
        if len(points) >= 4:
            draw.line([*points, *points[:2]], fill=LESION, width=1)
    draw.text((8, image.height + 4), caption, INK, letters)
    key = KEY + (f" · {FLAG_KEY}" if tiling.flags.any() else "") + (" · red: annotated" if lesions else "")
    draw.text((8, image.height + 22), key, SOFT_INK, ImageFont.load_default(11))
    return page


def png_bytes(image: Image.Image) -> bytes:
    """Encode as PNG with light compression: 10 % larger and several times faster."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def preview(thumbnail: RGB, picture: Image.Image) -> bytes:
    """Return a small JPEG of slide and picture side by side, for the contact sheet."""
    width = -(-thumbnail.shape[1] // _shrinking(thumbnail))  # of the slide on the picture
    left, right = (
        ImageOps.contain(_shrunk(image, max(1, max(image.size) // PREVIEW_PX)), (PREVIEW_PX, PREVIEW_PX))
        for image in (Image.fromarray(thumbnail), picture.crop((0, 0, width, picture.height - FOOTER_PX)))
    )
    page = Image.new("RGB", (left.width + 8 + right.width, max(left.height, right.height)), PAPER)
    page.paste(left, (0, 0))
    page.paste(right, (left.width + 8, 0))
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _shrinking(thumbnail: RGB) -> int:
    """Return by how much a thumbnail is shrunk for the picture."""
    height, width = thumbnail.shape[:2]
    factor: int = max(1, -(-max(height, width) // LONGEST_PX))
    return factor


def _shrunk(image: Image.Image, factor: int) -> Image.Image:
    return image.reduce(factor) if factor > 1 else image


def _tint(pixels: RGB, state: NDArray[np.int16], lines: NDArray[np.bool_]) -> None:
    for bit, colour in reversed(FLAG_COLOURS):
        here = (state >= 0) & ((state & bit) > 0)
        pixels[here] = pixels[here] // 2 + np.array(colour, np.uint8) // 2
    y, x = np.nonzero(state >= 256)
    crossed = (x + y) % 6 == 0
    pixels[y[crossed], x[crossed]] = INK
    on = lines & (state >= 0) & (state < 256)
    pixels[on] = (pixels[on].astype(np.uint16) * 2 + np.array(TILE, np.uint16)) // 3
