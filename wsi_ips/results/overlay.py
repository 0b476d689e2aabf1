"""Heatmaps as pictures: colours over H&E, with everything a reader needs written on the picture.

Rules (docs explain why): a comparable map has a fixed 0-1 scale, any other map shows ranks within the slide; colours
are perceptually uniform; opacity follows the score, so tissue stays readable and pixels outside all tiles stay as they
are; every picture carries a legend, a scale bar, the slide's probability, the model and "research use only"; a JSON
sidecar places it on the slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import polygons_of
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.provenance import atomic_path, atomic_write_json
from wsi_ips.results.picture_page import (
    RESEARCH,
    Frame,
    Key,
    draw_hatch_sample,
    draw_header,
    draw_keys,
    draw_legend,
    draw_line_sample,
    draw_outline,
    draw_scale_bar,
    hatch,
    verdict_text,
)
from wsi_ips.results.score_maps import SCORE_MAPS, ScoreMap
from wsi_ips.results.score_raster import Raster
from wsi_ips.slides import RGB

SCHEMA_VERSION = 1
OPACITY = 0.6  # of a score of 1
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
        keys.append(("tissue not analysed", draw_hatch_sample))
    draw_keys(page, frame, keys)
    return page


def sidecar(view: View, raster: Raster, caption: Caption, *, kind: str, fingerprint: str) -> dict[str, Any]:
    """Return what places a picture on its slide and explains its colours.

    ``to_level0`` maps the centre of a PNG pixel (column, row) to level-0 pixels: ``x = a * (column + 0.5) + c``,
    ``y = e * (row + 0.5) + f``; :func:`wsi_ips.results.slide_heatmaps.page_position` is the inverse.
    """
    score_map = SCORE_MAPS[kind]
    scale, box = view.px0_per_px, Frame(view.size).map_box
    finite = raster.values[np.isfinite(raster.values)]
    unseen = not_analysed(view, raster)
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
        "not_analysed_mm2": None if unseen is None else round(float(unseen.sum()) * view.mpp.x * view.mpp.y / 1e6, 4),
        "note": RESEARCH,
    }


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
