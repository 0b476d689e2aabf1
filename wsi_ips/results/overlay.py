"""Heatmaps as pictures: colours over H&E, with everything a reader needs written on the picture.

Rules (docs explain why): a comparable map has a fixed 0-1 scale, any other map shows ranks within the slide; colours
are perceptually uniform; opacity follows the score, so tissue stays readable and pixels outside all tiles stay as they
are; every picture carries a legend, a scale bar, the slide's probability, the model and "research use only"; a JSON
sidecar places it on the slide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import shapely
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from shapely.geometry.base import BaseGeometry

from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.outline_repair import polygons_of
from wsi_ips.provenance import atomic_path, atomic_write_json
from wsi_ips.results.score_maps import SCORE_MAPS, ScoreMap
from wsi_ips.results.score_raster import Raster
from wsi_ips.slides import RGB
from wsi_ips.tiles.recall import NotAnalysed

SCHEMA_VERSION = 1
OPACITY = 0.6  # of a score of 1
INK, SOFT_INK, PAPER, HAIRLINE = (25, 25, 28), (95, 95, 100), (255, 255, 255), (200, 202, 208)
HATCH = (60, 95, 170)
RESEARCH = "Research use only"
SCALE_BARS_UM = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
LONGEST_PX = 1600  # longest side of a map; large tissue is drawn at a coarser scale


@dataclass(frozen=True)
class View:
    """Pixels of an area of a slide."""

    pixels: RGB  # (height, width, 3)
    area_px0: Box  # the area, level-0 pixels
    mpp: Scale  # µm per pixel
    tissue: NDArray[np.bool_] | None = None  # (height, width), where tissue was found; None where it is not known

    @property
    def size(self) -> Size:
        """Size in pixels."""
        height, width = self.pixels.shape[:2]
        return Size(width, height)

    @property
    def px0_per_px(self) -> Scale:
        """Level-0 pixels per pixel."""
        return Scale(self.area_px0.width / self.size.width, self.area_px0.height / self.size.height)

    def centres_px0(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the level-0 positions of the centres of columns and rows."""
        x = self.area_px0.x + (np.arange(self.size.width, dtype=np.float64) + 0.5) * self.px0_per_px.x
        y = self.area_px0.y + (np.arange(self.size.height, dtype=np.float64) + 0.5) * self.px0_per_px.y
        return x, y


@dataclass(frozen=True)
class Caption:
    """Texts and outlines on a picture besides the map."""

    slide_id: str
    class_name: str  # positive class
    probability: float | None  # of that class for the whole slide; None where it is not known
    model_id: str
    outlines: tuple[NDArray[np.float64], ...] = ()  # annotated tumour, each (n, 2): x, y in level-0 pixels
    title: str = ""  # of scores that another tool made; empty = that of the score map
    meaning: str = ""  # legend of such scores
    unseen: NotAnalysed | None = None  # tissue that no tile covers, as tiling measured it; None where it did not


def colour_map(view: View, raster: Raster, *, kind: str, opacity: float = OPACITY) -> RGB:
    """Return H&E with the colours of score map ``kind`` over it; pixels that no tile covers stay untouched."""
    raster.require_0_to_1(kind)
    values = raster.sample(*view.centres_px0())  # (height, width)
    known = np.isfinite(values)
    out = view.pixels.copy()
    out[known] = _blend(view.pixels[known], values[known], SCORE_MAPS[kind], opacity)
    return out


def mask_in(view: View, region: BaseGeometry) -> NDArray[np.bool_]:
    """Return which pixels of a view lie in a region (level-0 pixels), to within a pixel; bool (height, width)."""
    mask = Image.new("L", view.size)
    draw, corner, scale = ImageDraw.Draw(mask), np.array([view.area_px0.x, view.area_px0.y]), np.array(view.px0_per_px)
    # Largest first: a part that lies in the hole of another is drawn after the hole.
    for polygon in sorted(polygons_of(region), key=lambda part: -part.area):
        for ring, inside in ((polygon.exterior, 255), *((hole, 0) for hole in polygon.interiors)):
            points = (shapely.get_coordinates(ring) - corner) / scale - 0.5  # counted from pixel centres
            draw.polygon(points.ravel().tolist(), fill=inside)
    return np.asarray(mask) > 0


def not_analysed(view: View, raster: Raster) -> NDArray[np.bool_] | None:
    """Return where tissue has no tile, shape (height, width) of the view; None where tissue is not known."""
    if view.tissue is None:
        return None
    return np.asarray(view.tissue & ~np.isfinite(raster.sample(*view.centres_px0())))


def draw_overlay(view: View, raster: Raster, caption: Caption, *, kind: str, opacity: float = OPACITY) -> Image.Image:
    """Return the finished picture: header, map, legend, scale bar.

    The legend shows the colours as they appear on this slide: over the tone of its tissue, at their opacity.
    """
    score_map, frame = SCORE_MAPS[kind], Frame(view.size)
    coloured = Image.fromarray(colour_map(view, raster, kind=kind, opacity=opacity))
    unseen = not_analysed(view, raster)
    if unseen is not None:
        hatch(coloured, unseen, frame)
    _draw_outlines(coloured, view, caption.outlines, frame)
    page = frame.blank()
    page.paste(coloured, (frame.map_box.x, frame.map_box.y))
    slide = verdict_text(caption.class_name, caption.probability)
    titles = (caption.title or score_map.picture_title, slide)
    draw_header(page, frame, ((caption.slide_id, ""), titles, (f"model {caption.model_id}", RESEARCH)))
    bar = _legend_bar(view, raster, score_map, opacity)
    draw_legend(page, frame, caption.meaning or score_map.legend, bar, score_map.marks)
    draw_scale_bar(page, frame, view.mpp.x)
    keys: list[Key] = []
    if caption.outlines:
        keys.append(("annotated tumour", draw_line_sample))
    if unseen is not None and unseen.any():
        share = "" if caption.unseen is None else f": {caption.unseen.share:.1%}"
        keys.append((f"tissue not analysed{share}", draw_hatch_sample))
    draw_keys(page, frame, keys)
    if caption.unseen is not None and caption.unseen.mm2:
        draw_note(page, frame, f"not analysed: {caption.unseen.areas}")
    return page


def sidecar(view: View, raster: Raster, caption: Caption, *, kind: str, fingerprint: str) -> dict[str, Any]:
    """Return the sidecar, which places a picture on its slide and explains its colours.

    ``to_level0`` maps the centre of a PNG pixel (column, row) to level-0 pixels: ``x = a * (column + 0.5) + c``,
    ``y = e * (row + 0.5) + f``; :func:`wsi_ips.results.slide_heatmaps.page_position` is the inverse.
    """
    score_map = SCORE_MAPS[kind]
    scale, box = view.px0_per_px, Frame(view.size).map_box
    finite = raster.values[np.isfinite(raster.values)]
    return {
        "schema_version": SCHEMA_VERSION,
        "slide_id": caption.slide_id,
        "kind": kind,
        "meaning": caption.meaning or score_map.legend,
        "slide_probability": caption.probability,
        "class": caption.class_name,
        "model_id": caption.model_id,
        "fingerprint": fingerprint,
        "map_box_px": list(box),
        "to_level0": {
            "a": scale.x,
            "c": view.area_px0.x - box.x * scale.x,
            "e": scale.y,
            "f": view.area_px0.y - box.y * scale.y,
        },
        "mpp": list(view.mpp),
        "cell_px0": list(raster.cell_px0),
        "tile_px0": list(raster.tile_px0),
        "colours": score_map.colours,
        "colour_range": [0.0, 1.0],
        "value_range": [float(finite.min()), float(finite.max())] if len(finite) else None,
        "tiles": int(raster.starts.sum()),
        **_not_analysed_facts(view, raster, caption),
        "note": RESEARCH,
    }


def _not_analysed_facts(view: View, raster: Raster, caption: Caption) -> dict[str, Any]:
    """Return the tissue without tiles as tiling measured it; else its area on the picture, None where not known."""
    if caption.unseen is not None:
        return caption.unseen.facts
    unseen = not_analysed(view, raster)
    area = None if unseen is None else round(float(unseen.sum()) * view.mpp.x * view.mpp.y / 1e6, 4)
    return {"not_analysed_mm2": area}


def write_overlay(path: Path, picture: Image.Image, facts: dict[str, Any]) -> None:
    """Write the PNG, then its sidecar ``<name>.json``, each atomically."""
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", optimize=False)
    atomic_write_json(path.with_suffix(".json"), facts)


def _blend(pixels: RGB, score: NDArray[np.floating], score_map: ScoreMap, opacity: float) -> RGB:
    """Return colours over pixels (n, 3); the opacity follows the score (n,)."""
    score = np.clip(score, 0, 1)
    alpha = opacity * (score**score_map.opacity_power)[:, None]
    colours = palette(score_map.colours)[np.rint(score * 255).astype(np.uint8)]
    return np.asarray(np.rint(pixels * (1 - alpha) + colours * alpha), np.uint8)


def _legend_bar(view: View, raster: Raster, score_map: ScoreMap, opacity: float) -> RGB:
    """Return all colours (256, 3) over the median tone of the tiled tissue."""
    tiled = np.isfinite(raster.sample(*view.centres_px0()))
    tone = np.median(view.pixels[tiled], axis=0) if tiled.any() else np.full(3, 255.0)
    return _blend(np.tile(tone.astype(np.uint8), (256, 1)), np.linspace(0, 1, 256), score_map, opacity)


def _draw_outlines(picture: Image.Image, view: View, outlines: tuple[NDArray[np.float64], ...], frame: Frame) -> None:
    draw = ImageDraw.Draw(picture)
    for outline in outlines:
        if len(outline) < 2:
            continue
        points = (np.asarray(outline) - [view.area_px0.x, view.area_px0.y]) / list(view.px0_per_px)
        draw_outline(draw, [(x, y) for x, y in [*points.tolist(), points[0].tolist()]], frame)


@lru_cache(8)
def palette(colours: str) -> NDArray[np.uint8]:
    """Return a Matplotlib colour map for scores 0 to 1, shape (256, 3)."""
    values = matplotlib.colormaps[colours](np.arange(256))[:, :3]
    return np.asarray(np.rint(values * 255), np.uint8)


# The page around the map: header, legend, scale bar, fonts. Knows nothing about scores.


@dataclass(frozen=True)
class Frame:
    """Layout of a page; lengths in page pixels.

    Text grows with the map, so that it stays readable when the page is shown small.
    """

    map_size: Size  # size of the map on the page

    def px(self, length: float) -> int:
        """Scale a length that is given for a map 1000 px wide."""
        return round(length * max(1.0, self.map_size.width / 1000, self.map_size.height / 1400))

    @property
    def page_size(self) -> Size:
        """Size of the whole page."""
        width = max(self.px(560), self.map_size.width + 2 * self.px(16))
        return Size(width, self.px(84) + self.map_size.height + self.px(88))

    @property
    def map_box(self) -> Box:
        """Place of the map: centred between the edges."""
        return Box((self.page_size.width - self.map_size.width) // 2, self.px(84), *self.map_size)

    def blank(self) -> Image.Image:
        """Return an empty page with a hairline around the map."""
        page = Image.new("RGB", self.page_size, PAPER)
        box = self.map_box
        ImageDraw.Draw(page).rectangle([box.x - 1, box.y - 1, box.right, box.bottom], outline=HAIRLINE)
        return page


def probability_text(probability: float) -> str:
    """Format a probability with three digits, without rounding it to 0 or 1."""
    if 0.9995 <= probability < 1:
        return "> 0.999"
    return "< 0.001" if 0 < probability < 0.0005 else f"{probability:.3f}"


def verdict_text(class_name: str, probability: float | None) -> str:
    """Return a slide's class and probability as text, empty where the probability is not known."""
    return "" if probability is None else f"slide: {class_name} {probability_text(probability)}"


def draw_header(page: Image.Image, frame: Frame, rows: Sequence[tuple[str, str]]) -> None:
    """Draw three rows of text, left and right, above the map; a left part that does not fit is cut."""
    draw, margin = ImageDraw.Draw(page), frame.px(16)
    tops, sizes, inks = (10, 38, 60), (20, 15, 12), (INK, INK, SOFT_INK)
    for (left, right), top, size, ink in zip(rows, tops, sizes, inks, strict=True):
        letters = font(frame.px(size), bold=top == tops[0])
        room = page.width - 2 * margin - letters.getlength(right) - frame.px(16)
        draw.text((margin, frame.px(top)), fitted(left, room, letters), ink, letters)
        draw.text((page.width - margin, frame.px(top)), right, ink, letters, anchor="ra")


def draw_legend(page: Image.Image, frame: Frame, title: str, bar: NDArray[np.uint8], marks: Sequence[str]) -> None:
    """Draw the colour bar (n, 3) below the map, lowest first; ``marks`` are spaced evenly along it."""
    draw, left, top, letters = ImageDraw.Draw(page), frame.px(16), frame.map_box.bottom, font(frame.px(12))
    width, height = frame.px(250), frame.px(14)
    draw.text((left, top + frame.px(10)), title, INK, letters)
    upper = top + frame.px(32)
    page.paste(Image.fromarray(np.ascontiguousarray(bar[None])).resize((width, height)), (left, upper))
    draw.rectangle([left - 1, upper - 1, left + width, upper + height], outline=SOFT_INK)
    anchors = ("la", *["ma"] * (len(marks) - 2), "ra")
    for position, mark, anchor in zip(np.linspace(0, width, len(marks)), marks, anchors, strict=True):
        draw.text((left + position, upper + height + frame.px(5)), mark, INK, letters, anchor=anchor)


def draw_scale_bar(page: Image.Image, frame: Frame, um_per_px: float) -> None:
    """Draw the longest round length that fits a quarter of the map, below its right corner."""
    draw, right, top = ImageDraw.Draw(page), page.width - frame.px(16), frame.map_box.bottom + frame.px(34)
    room = min(frame.px(200), max(frame.px(40), frame.map_size.width / 4))
    fitting = [um for um in SCALE_BARS_UM if um / um_per_px <= room]
    length_um = fitting[-1] if fitting else SCALE_BARS_UM[0]
    length, half = length_um / um_per_px, frame.px(3)
    draw.rectangle([right - round(length), top - half, right - 1, top + half - 1], INK)
    text = f"{length_um} µm" if length_um < 1000 else f"{length_um // 1000} mm"
    draw.text((right - length / 2, top + frame.px(7)), text, INK, font(frame.px(12)), anchor="ma")


Key = tuple[str, Callable[[Image.Image, Frame, Box], None]]  # text of a sign; draws a sample of it into a box


def draw_keys(page: Image.Image, frame: Frame, keys: Sequence[Key]) -> None:
    """Draw the key of outlines and hatching, each sample followed by its text; right-aligned below the map."""
    draw, letters = ImageDraw.Draw(page), font(frame.px(12))
    right, y = page.width - frame.px(16), frame.map_box.bottom + frame.px(16)
    for text, sample in keys:
        draw.text((right, y), text, INK, letters, anchor="rm")
        start = right - math.ceil(letters.getlength(text)) - frame.px(32)
        sample(page, frame, Box(start, y - frame.px(6), frame.px(24), frame.px(12)))
        right = start - frame.px(14)


def draw_note(page: Image.Image, frame: Frame, text: str) -> None:
    """Draw a line of small text below the scale bar, right-aligned."""
    letters = font(frame.px(11))
    room = page.width - 2 * frame.px(16) - frame.px(270)  # beside the colour bar
    place = (page.width - frame.px(16), frame.map_box.bottom + frame.px(78))
    ImageDraw.Draw(page).text(place, fitted(text, room, letters), SOFT_INK, letters, anchor="rm")


def draw_line_sample(page: Image.Image, frame: Frame, box: Box) -> None:
    """Draw a piece of an outline."""
    y = box.y + box.height // 2
    draw_outline(ImageDraw.Draw(page), [(box.x, y), (box.right, y)], frame)


def draw_hatch_sample(page: Image.Image, frame: Frame, box: Box) -> None:
    """Draw a hatched box."""
    sample = Image.new("RGB", (box.width, box.height), PAPER)
    hatch(sample, np.ones((box.height, box.width), bool), frame)
    page.paste(sample, (box.x, box.y))
    ImageDraw.Draw(page).rectangle([box.x - 1, box.y - 1, box.right, box.bottom], outline=HATCH)


def hatch(picture: Image.Image, where: NDArray[np.bool_], frame: Frame) -> None:
    """Draw thin diagonal lines over some pixels (bool, shape of the picture); pixels between lines stay as they are."""
    rows, columns = np.arange(where.shape[0])[:, None], np.arange(where.shape[1])[None]
    lines = (rows + columns) % frame.px(9) < max(1, frame.px(1))
    picture.paste(HATCH, mask=Image.fromarray(where & lines))


def draw_outline(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], frame: Frame) -> None:
    """Draw a thin black line with a light edge, visible on dark and on pale tissue."""
    draw.line(points, (255, 255, 255), frame.px(1) + 2, joint="curve")
    draw.line(points, (0, 0, 0), frame.px(1), joint="curve")


def fitted(text: str, width: float, letters: ImageFont.FreeTypeFont) -> str:
    """Cut a text to a width with an ellipsis."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache(32)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which Matplotlib ships and which has a µ."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties, fallback_to_default=True), size)
