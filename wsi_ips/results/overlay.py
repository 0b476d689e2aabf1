"""Heatmaps as pictures: colour over H&E, with everything a reader needs written on it.

Rules (why is in the design notes on evaluation): tumour probability on a fixed 0-1 scale, attention as rank
within the slide; colours are perceptually uniform; opacity follows the score, so tissue stays readable and
what was not tiled stays as it is; every picture carries legend, scale bar, slide probability, model and
"research use only"; a JSON sidecar places it on the slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_ips.geometry import Box, Scale
from wsi_ips.provenance import atomic_path, atomic_write_json
from wsi_ips.results.heatmap import Raster
from wsi_ips.slides import RGB

Kind = Literal["probability", "attention"]
COLOURS = {"probability": "viridis", "attention": "cividis"}
LEGENDS = {
    "probability": ("tumour probability of each tile alone", "0", "0.5", "1"),
    "attention": ("attention rank, relative within this slide", "least", "median", "most"),
}
RESEARCH = "Research use only"
HEADER_PX, FOOTER_PX, MARGIN_PX, SMALLEST_WIDTH_PX = 56, 84, 16, 760
INK, SOFT_INK, PAPER = (25, 25, 28), (95, 95, 100), (255, 255, 255)
SCALE_BARS_UM = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class View:
    """A piece of a slide as pixels.

    Attributes
    ----------
    pixels
        uint8, shape (height, width, 3).
    area_px0
        What it shows, level-0 pixels.
    mpp
        µm per pixel.
    """

    pixels: RGB
    area_px0: Box
    mpp: Scale

    @property
    def px0_per_px(self) -> Scale:
        """Level-0 pixels per pixel."""
        height, width = self.pixels.shape[:2]
        return Scale(self.area_px0.width / width, self.area_px0.height / height)

    def centres_px0(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Level-0 positions of the middles of columns and rows."""
        height, width = self.pixels.shape[:2]
        x = self.area_px0.x + (np.arange(width) + 0.5) * self.px0_per_px.x
        y = self.area_px0.y + (np.arange(height) + 0.5) * self.px0_per_px.y
        return x, y


@dataclass(frozen=True)
class Caption:
    """What stands on a picture beside the map.

    Attributes
    ----------
    slide_id
        Identity of the slide.
    class_name, probability
        Positive class and its probability for the whole slide.
    model_id
        Which model.
    outlines
        Annotated tumour outlines, each of shape (n, 2): x, y in level-0 pixels; drawn as thin lines.
    """

    slide_id: str
    class_name: str
    probability: float
    model_id: str
    outlines: tuple[NDArray[np.float64], ...] = ()


def colour_map(view: View, raster: Raster, *, kind: Kind, opacity: float) -> RGB:
    """H&E with the scores over it; where there is no tile the pixels stay untouched.

    Parameters
    ----------
    view
        The slide.
    raster
        Scores, 0-1.
    kind
        Chooses the colours; opacity is proportional to a probability, and to the square of a rank.
    opacity
        Opacity of a score of 1.
    """
    values = raster.sample(*view.centres_px0())  # (height, width)
    known = np.isfinite(values)
    score = np.where(known, np.clip(values, 0, 1), 0)
    alpha = opacity * (score if kind == "probability" else score**2)[..., None]
    colours = _palette(kind)[np.rint(score * 255).astype(np.uint8)]  # (height, width, 3)
    mixed = np.rint(view.pixels * (1 - alpha) + colours * alpha).astype(np.uint8)
    return np.where(known[..., None], mixed, view.pixels)


def draw_overlay(view: View, raster: Raster, caption: Caption, *, kind: Kind, opacity: float) -> Image.Image:
    """The finished picture: header, map, footer with legend and scale bar."""
    coloured = Image.fromarray(colour_map(view, raster, kind=kind, opacity=opacity))
    _draw_outlines(coloured, view, caption.outlines)
    width = max(SMALLEST_WIDTH_PX, coloured.width + 2 * MARGIN_PX)
    page = Image.new("RGB", (width, HEADER_PX + coloured.height + FOOTER_PX), PAPER)
    page.paste(coloured, (MARGIN_PX, HEADER_PX))
    draw = ImageDraw.Draw(page)
    _header(draw, width, caption)
    _footer(draw, page, HEADER_PX + coloured.height, view, kind, bool(caption.outlines))
    return page


def sidecar(view: View, raster: Raster, caption: Caption, *, kind: Kind, fingerprint: str) -> dict[str, Any]:
    """What places a picture on its slide.

    ``to_level0`` maps a PNG pixel (column, row), counted at its middle, to level-0 pixels:
    ``x = a * (column + 0.5) + c``, ``y = e * (row + 0.5) + f``.
    """
    scale = view.px0_per_px
    height, width = view.pixels.shape[:2]
    finite = raster.values[np.isfinite(raster.values)]
    return {
        "slide_id": caption.slide_id,
        "kind": kind,
        "meaning": LEGENDS[kind][0],
        "slide_probability": caption.probability,
        "class": caption.class_name,
        "model_id": caption.model_id,
        "fingerprint": fingerprint,
        "map_box_px": [MARGIN_PX, HEADER_PX, width, height],
        "to_level0": {
            "a": scale.x,
            "c": view.area_px0.x - MARGIN_PX * scale.x,
            "e": scale.y,
            "f": view.area_px0.y - HEADER_PX * scale.y,
        },
        "mpp": list(view.mpp),
        "cell_px0": list(raster.cell_px0),
        "colour_range": [0.0, 1.0],
        "value_range": [float(finite.min()), float(finite.max())],
        "tiles": len(finite),
        "note": RESEARCH,
    }


def write_overlay(path: Path, picture: Image.Image, facts: dict[str, Any]) -> None:
    """Write the PNG, then its sidecar ``<name>.json``; each appears whole or not at all."""
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", optimize=False)
    atomic_write_json(path.with_suffix(".json"), facts)


def _header(draw: ImageDraw.ImageDraw, width: int, caption: Caption) -> None:
    draw.text((MARGIN_PX, 8), _fitted(caption.slide_id, width - 330, 20), INK, font(20, bold=True))
    right = f"{caption.class_name} probability {caption.probability:.3f}"
    draw.text((width - MARGIN_PX, 8), right, INK, font(20, bold=True), anchor="ra")
    draw.text((MARGIN_PX, 34), f"model {caption.model_id}", SOFT_INK, font(13))
    draw.text((width - MARGIN_PX, 34), RESEARCH, SOFT_INK, font(13), anchor="ra")


def _footer(
    draw: ImageDraw.ImageDraw, page: Image.Image, top: int, view: View, kind: Kind, outlined: bool
) -> None:
    title, *marks = LEGENDS[kind]
    left, bar_width = MARGIN_PX, 300
    draw.text((left, top + 10), title, INK, font(13))
    bar = Image.fromarray(np.repeat(_palette(kind)[None], 14, axis=0)).resize((bar_width, 14))
    page.paste(bar, (left, top + 32))
    for position, mark, anchor in zip((0, 0.5, 1), marks, ("la", "ma", "ra"), strict=True):
        draw.text((left + position * bar_width, top + 52), mark, INK, font(12), anchor=anchor)
    if outlined:
        x = left + bar_width + 36
        draw.line([(x, top + 39), (x + 24, top + 39)], (0, 0, 0), 2)
        draw.text((x + 32, top + 39), "annotated tumour", INK, font(12), anchor="lm")
    _scale_bar(draw, page.width - MARGIN_PX, top + 39, view)


def _scale_bar(draw: ImageDraw.ImageDraw, right: int, y: int, view: View) -> None:
    """The longest round length that fits a quarter of the picture."""
    fitting = [um for um in SCALE_BARS_UM if um / view.mpp.x <= max(60, view.pixels.shape[1] / 4)]
    length_um = fitting[-1] if fitting else SCALE_BARS_UM[0]
    length = length_um / view.mpp.x
    draw.rectangle([right - length, y - 3, right, y + 2], INK)
    text = f"{length_um} µm" if length_um < 1000 else f"{length_um // 1000} mm"
    draw.text((right - length / 2, y + 8), text, INK, font(13), anchor="ma")


def _draw_outlines(picture: Image.Image, view: View, outlines: tuple[NDArray[np.float64], ...]) -> None:
    draw = ImageDraw.Draw(picture)
    for outline in outlines:
        points = (np.asarray(outline) - [view.area_px0.x, view.area_px0.y]) / list(view.px0_per_px)
        ring = [tuple(p) for p in points.tolist()]
        draw.line([*ring, ring[0]], (0, 0, 0), 2)


def _palette(kind: Kind) -> NDArray[np.uint8]:
    """256 colours, shape (256, 3)."""
    colours = matplotlib.colormaps[COLOURS[kind]](np.arange(256))[:, :3]
    return np.rint(colours * 255).astype(np.uint8)


def _fitted(text: str, width: int, size: int) -> str:
    """Text cut to a width."""
    letters = font(size, bold=True)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache(16)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows µ."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties, fallback_to_default=True), size)
