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
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import polygons_of
from wsi_ips.errors import ScoresError
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.provenance import atomic_path, atomic_write_json
from wsi_ips.results import frame as page_frame
from wsi_ips.results.frame import RESEARCH, Frame, probability_text
from wsi_ips.results.heatmap import Raster
from wsi_ips.slides import RGB

Kind = Literal["probability", "attention", "evidence", "leave-one-out"]
SCHEMA_VERSION = 1
COLOURS = {
    "probability": "viridis",
    "attention": "cividis",
    "evidence": "viridis",
    "leave-one-out": "viridis",
    "truth": "Oranges",
    "tissue": "Greens",
}
TITLES = {
    "probability": "Tumour probability map",
    "attention": "Attention map, relative within this slide",
    "evidence": "Evidence map",
    "leave-one-out": "Leave-one-out map, kept tiles only",
}
LEGENDS = {
    "probability": ("tumour probability of each tile alone", "0", "0.25", "0.5", "0.75", "1"),
    "attention": ("attention rank, relative within this slide", "least", "median", "most"),
    "evidence": ("share of the slide's odds that rests on each tile", "0", "0.25", "0.5", "0.75", "1"),
    "leave-one-out": ("share of the slide's odds lost without each tile", "0", "0.25", "0.5", "0.75", "1"),
}
OVERSHOOT = 1e-4
"""Scores may leave 0-1 by rounding, never by more."""


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
    tissue
        Where tissue was found, bool, shape (height, width); None where it is not known.
    """

    pixels: RGB
    area_px0: Box
    mpp: Scale
    tissue: NDArray[np.bool_] | None = None

    @property
    def px0_per_px(self) -> Scale:
        """Level-0 pixels per pixel."""
        height, width = self.pixels.shape[:2]
        return Scale(self.area_px0.width / width, self.area_px0.height / height)

    def centres_px0(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Level-0 positions of the middles of columns and rows."""
        height, width = self.pixels.shape[:2]
        x = self.area_px0.x + (np.arange(width, dtype=np.float64) + 0.5) * self.px0_per_px.x
        y = self.area_px0.y + (np.arange(height, dtype=np.float64) + 0.5) * self.px0_per_px.y
        return x, y


@dataclass(frozen=True)
class Caption:
    """What stands on a picture beside the map.

    Attributes
    ----------
    slide_id
        Identity of the slide.
    class_name, probability
        Positive class and its probability for the whole slide; None where nobody has said one.
    model_id
        Which model.
    outlines
        Annotated tumour outlines, each of shape (n, 2): x, y in level-0 pixels; drawn as thin lines.
    title, meaning
        What the map and its colours are, where they are not ours; empty for the words of the map's kind.
    """

    slide_id: str
    class_name: str
    probability: float | None
    model_id: str
    outlines: tuple[NDArray[np.float64], ...] = ()
    title: str = ""
    meaning: str = ""


def colour_map(view: View, raster: Raster, *, kind: Kind, opacity: float) -> RGB:
    """H&E with the scores over it; where there is no tile the pixels stay untouched.

    Parameters
    ----------
    view
        The slide.
    raster
        Scores, 0-1.
    kind
        Chooses the colours; opacity is proportional to a score, and to the square of a rank.
    opacity
        Opacity of a score of 1.

    Raises
    ------
    ScoresError
        A score outside 0-1: the scale of colours is fixed.
    """
    values = raster.sample(*view.centres_px0())  # (height, width)
    known = np.isfinite(values)
    if (np.abs(values[known] - 0.5) > 0.5 + OVERSHOOT).any():
        raise ScoresError(f"{kind} map: scores reach {values[known].min():.4g} to {values[known].max():.4g}, not 0-1")
    out = view.pixels.copy()
    out[known] = _blend(view.pixels[known], values[known], kind, opacity)
    return out


def mask_in(view: View, region: BaseGeometry) -> NDArray[np.bool_]:
    """Pixels of a view that lie in a region, to a pixel at its edge.

    Parameters
    ----------
    view
        The piece of the slide.
    region
        Level-0 pixels.

    Returns
    -------
    numpy.ndarray
        bool, shape (height, width).
    """
    height, width = view.pixels.shape[:2]
    mask = Image.new("L", (width, height))
    draw, corner, scale = ImageDraw.Draw(mask), np.array([view.area_px0.x, view.area_px0.y]), np.array(view.px0_per_px)
    for polygon in sorted(polygons_of(region), key=lambda part: -part.area):  # what lies in a hole comes after it
        for ring, inside in ((polygon.exterior, 255), *((hole, 0) for hole in polygon.interiors)):
            points = (shapely.get_coordinates(ring) - corner) / scale - 0.5  # from the middle of a pixel
            draw.polygon(points.ravel().tolist(), fill=inside)
    return np.asarray(mask) > 0


def not_analysed(view: View, raster: Raster) -> NDArray[np.bool_] | None:
    """Tissue without a tile, bool, shape (height, width) of the view; None where tissue is not known."""
    if view.tissue is None:
        return None
    return np.asarray(view.tissue & ~np.isfinite(raster.sample(*view.centres_px0())))


def draw_overlay(view: View, raster: Raster, caption: Caption, *, kind: Kind, opacity: float) -> Image.Image:
    """The finished picture: header, map, legend, scale bar.

    The legend shows the colours as they look on this slide: over the tone of its tissue, at their opacity.
    """
    frame = Frame(Size(view.pixels.shape[1], view.pixels.shape[0]))
    coloured = Image.fromarray(colour_map(view, raster, kind=kind, opacity=opacity))
    unseen = not_analysed(view, raster)
    if unseen is not None:
        page_frame.hatch(coloured, unseen, frame)
    _draw_outlines(coloured, view, caption.outlines, frame)
    page = frame.blank()
    page.paste(coloured, (frame.map_box.x, frame.map_box.y))
    slide = (
        "" if caption.probability is None else f"slide: {caption.class_name} {probability_text(caption.probability)}"
    )
    rows = (
        (caption.slide_id, ""),
        (caption.title or TITLES[kind], slide),
        (f"model {caption.model_id}", RESEARCH),
    )
    page_frame.draw_header(page, frame, rows)
    title, *marks = LEGENDS[kind]
    page_frame.draw_legend(page, frame, caption.meaning or title, _legend_bar(view, raster, kind, opacity), marks)
    page_frame.draw_scale_bar(page, frame, view.mpp.x)
    keys: list[page_frame.Key] = []
    if caption.outlines:
        keys.append(("annotated tumour", page_frame.draw_line_sample))
    if unseen is not None and unseen.any():
        keys.append(("tissue not analysed", page_frame.draw_hatch_sample))
    page_frame.draw_keys(page, frame, keys)
    return page


def sidecar(view: View, raster: Raster, caption: Caption, *, kind: Kind, fingerprint: str) -> dict[str, Any]:
    """What places a picture on its slide, and what its colours stand for.

    ``to_level0`` maps a PNG pixel (column, row), counted at its middle, to level-0 pixels:
    ``x = a * (column + 0.5) + c``, ``y = e * (row + 0.5) + f``; :func:`wsi_ips.results.alignment.page_position`
    goes back.
    """
    scale, box = view.px0_per_px, Frame(Size(view.pixels.shape[1], view.pixels.shape[0])).map_box
    finite = raster.values[np.isfinite(raster.values)]
    unseen = not_analysed(view, raster)
    return {
        "schema_version": SCHEMA_VERSION,
        "slide_id": caption.slide_id,
        "kind": kind,
        "meaning": caption.meaning or LEGENDS[kind][0],
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
        "colours": COLOURS[kind],
        "colour_range": [0.0, 1.0],
        "value_range": [float(finite.min()), float(finite.max())] if len(finite) else None,
        "tiles": int(raster.starts.sum()),
        "not_analysed_mm2": None if unseen is None else round(float(unseen.sum()) * view.mpp.x * view.mpp.y / 1e6, 4),
        "note": RESEARCH,
    }


def write_overlay(path: Path, picture: Image.Image, facts: dict[str, Any]) -> None:
    """Write the PNG, then its sidecar ``<name>.json``; each appears whole or not at all."""
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG", optimize=False)
    atomic_write_json(path.with_suffix(".json"), facts)


def _blend(pixels: RGB, score: NDArray[np.floating], kind: Kind, opacity: float) -> RGB:
    """Colours over pixels of shape (n, 3); opacity follows the score of shape (n,)."""
    score = np.clip(score, 0, 1)
    alpha = opacity * (score**2 if kind == "attention" else score)[:, None]
    colours = palette(kind)[np.rint(score * 255).astype(np.uint8)]
    return np.asarray(np.rint(pixels * (1 - alpha) + colours * alpha), np.uint8)


def _legend_bar(view: View, raster: Raster, kind: Kind, opacity: float) -> RGB:
    """All colours over the median tone of the tiled tissue, shape (256, 3)."""
    tiled = np.isfinite(raster.sample(*view.centres_px0()))
    tone = np.median(view.pixels[tiled], axis=0) if tiled.any() else np.full(3, 255.0)
    return _blend(np.tile(tone.astype(np.uint8), (256, 1)), np.linspace(0, 1, 256), kind, opacity)


def _draw_outlines(picture: Image.Image, view: View, outlines: tuple[NDArray[np.float64], ...], frame: Frame) -> None:
    draw = ImageDraw.Draw(picture)
    for outline in outlines:
        if len(outline) < 2:
            continue
        points = (np.asarray(outline) - [view.area_px0.x, view.area_px0.y]) / list(view.px0_per_px)
        ring = [(x, y) for x, y in points.tolist()]
        page_frame.draw_outline(draw, [*ring, ring[0]], frame)


@lru_cache(4)
def palette(kind: str) -> NDArray[np.uint8]:
    """Colours of a map's scores 0 to 1, uint8, shape (256, 3); ``kind`` is a key of ``COLOURS``."""
    colours = matplotlib.colormaps[COLOURS[kind]](np.arange(256))[:, :3]
    return np.asarray(np.rint(colours * 255), np.uint8)
