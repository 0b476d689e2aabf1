"""Maps of scores that another model gave the tiles of a slide: needs the slide and the file, no recipe, no model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import HeatmapSection
from wsi_ips.errors import EvaluationError, ScoresError
from wsi_ips.pipeline.heatmap import ALIGNMENT_TILES, LEAST_ALIGNMENT, tiled_area
from wsi_ips.provenance import fingerprint
from wsi_ips.results import Caption, View, attention_rank, draw_overlay, sidecar, tile_raster, write_overlay
from wsi_ips.results.alignment import alignment_correlation
from wsi_ips.results.overlay import Kind
from wsi_ips.slides import RGB, SlideInfo, SlideReader, open_slide, read_area
from wsi_ips.slides.source import slide_name
from wsi_ips.tiles import SlideTiles, read_tiles
from wsi_ips.tiles.interop import PlacedScores, place_scores, read_scored, with_footprint
from wsi_ips.tiles.interop.importing import plan_footprint

SCHEMA_VERSION = 1
DrawAs = Literal["auto", "probability", "rank"]
ATTENTION = re.compile("att(entio)?n", re.IGNORECASE)
"""Attention is no probability, also where a softmax has brought it to 0-1."""
COMPARED_PX = 256
"""Side at which tiles are read again for the self-test."""


@dataclass(frozen=True)
class OtherScores:
    """What to draw.

    Attributes
    ----------
    scores, slide
        File of scored tiles, and its slide.
    columns
        Scores to draw; none = all in the file.
    draw_as
        ``probability`` on the fixed scale of 0 to 1, ``rank`` within the slide; ``auto``: a probability where all
        values are 0-1 and the name does not say attention.
    tile_px0, patches
        Size of a tile where the file does not say it, see :func:`wsi_ips.tiles.interop.with_footprint`.
    mpp
        µm per level-0 pixel, for slides that do not state it.
    """

    scores: Path
    slide: Path
    columns: Sequence[str] = ()
    draw_as: DrawAs = "auto"
    tile_px0: float | None = None
    patches: Path | None = None
    mpp: float | None = None


@dataclass(frozen=True)
class DrawnMap:
    """One finished map.

    Attributes
    ----------
    column
        Whose scores.
    kind
        ``probability`` or ``attention`` (a rank).
    path
        The picture; its sidecar lies beside it.
    alignment
        Self-test, about 1 where the map lies on its tissue; None where nothing could be compared.
    """

    column: str
    kind: Kind
    path: Path
    alignment: float | None


def draw_other_scores(
    wanted: OtherScores, output: Path, *, section: HeatmapSection, note: Callable[[str], None]
) -> list[DrawnMap]:
    """Draw every column of a file of scores over its slide.

    Parameters
    ----------
    wanted
        What to draw.
    output
        Folder for ``<slide>_<column>.png`` and their sidecars.
    section
        Scale, size and opacity of the pictures.
    note
        Who is told what was done to tiles of the file, and of what is odd.

    Raises
    ------
    ScoresError, TileIndexError
        The file cannot be used, or contradicts the slide.
    SlideError
        The slide cannot be read.
    """
    with open_slide(wanted.slide, mpp_override=wanted.mpp) as reader:
        placed = placed_scores(wanted, reader.info)
        for text in placed.notes:
            note(f"{wanted.scores.name}: {text}")
        area = tiled_area(placed.index)
        pixels, mpp = read_area(reader, area, section.mpp, section.max_side_px)
        page = _Page(wanted.scores.name, View(pixels, area, mpp), placed, section.opacity, *_to_compare(placed, reader))
    names = picture_names(placed.columns, placed.index.slide_id)
    return [page.draw(column, output / f"{names[column]}.png", wanted.draw_as, note) for column in placed.columns]


def placed_scores(wanted: OtherScores, info: SlideInfo) -> PlacedScores:
    """Read the file and place its scores on the slide; raises as :func:`draw_other_scores`."""
    stem = PurePosixPath(slide_name(wanted.slide)).stem
    scored = read_scored(wanted.scores, columns=wanted.columns, slide_names=(stem, slide_name(wanted.slide)))
    scored = with_footprint(scored, tile_px0=wanted.tile_px0, patches=wanted.patches)
    foot = list(scored.footprint_px0 or ())
    made_from = fingerprint(
        "other_scores", SCHEMA_VERSION, foot, hashlib.sha256(wanted.scores.read_bytes()).hexdigest()
    )
    return place_scores(scored, info, slide_id=stem, fingerprint=made_from)


def map_kind(column: str, values: NDArray[np.float64], draw_as: DrawAs) -> Kind:
    """How a column is drawn.

    Raises
    ------
    ScoresError
        A probability was asked for, and the values are none.
    """
    low, high = float(values.min()), float(values.max())
    within = low >= 0 and high <= 1
    if draw_as == "probability" and not within:
        raise ScoresError(
            f"`{column}` reaches from {low:.4g} to {high:.4g}: no probability (0 to 1); leave --as out for a rank map"
        )
    if draw_as == "rank" or (draw_as == "auto" and (not within or ATTENTION.search(column))):
        return "attention"
    return "probability"


def picture_names(columns: Iterable[str], slide_id: str) -> dict[str, str]:
    """File name, without ending, of the map of each column.

    Raises
    ------
    ScoresError
        Two columns would have one file.
    """
    names = {
        column: f"{slide_id}_{re.sub(r'[^0-9A-Za-z._-]+', '-', column).strip('-') or 'score'}" for column in columns
    }
    twice = [column for column, name in names.items() if list(names.values()).count(name) > 1]
    if twice:
        raise ScoresError(
            f"columns {', '.join(f'`{c}`' for c in twice)} would have one file name; take one with --column"
        )
    return names


@dataclass(frozen=True)
class _Page:
    """What all maps of a file share: name of the file, view, scores, opacity, tiles read again and their pixels."""

    source: str
    view: View
    placed: PlacedScores
    opacity: float
    compared: NDArray[np.int32]
    patches: RGB

    def draw(self, column: str, path: Path, draw_as: DrawAs, note: Callable[[str], None]) -> DrawnMap:
        index, values = self.placed.index, self.placed.columns[column]
        kind = map_kind(column, values, draw_as)
        raster = tile_raster(
            index.x,
            index.y,
            values if kind == "probability" else attention_rank(values),
            bounds=index.grid,
            stride_px0=index.stride_px0,
            footprint_px0=index.plan.footprint_px0,
        )
        caption = Caption(
            slide_id=index.slide_id,
            class_name=column,
            probability=None,
            model_id=f"unknown to this program, scores from {self.source}",
            title=f"{column}: " + ("as it is, 0 to 1" if kind == "probability" else "rank within this slide"),
            meaning=f"{column} of each tile" if kind == "probability" else f"rank of {column} within this slide",
        )
        picture = draw_overlay(self.view, raster, caption, kind=kind, opacity=self.opacity)
        made_from = fingerprint(index.fingerprint, column, kind, self.opacity)
        facts = sidecar(self.view, raster, caption, kind=kind, fingerprint=made_from)
        facts |= {"score_range": [float(values.min()), float(values.max())], "source": self.source}
        facts["alignment"] = self._alignment(np.asarray(picture), facts, column, note)
        write_overlay(path, picture, facts)
        return DrawnMap(column, kind, path, facts["alignment"])

    def _alignment(self, picture: RGB, facts: dict[str, Any], column: str, note: Callable[[str], None]) -> float | None:
        x, y = self.placed.index.x[self.compared], self.placed.index.y[self.compared]
        try:
            found = alignment_correlation(picture, facts, self.patches, x, y)
        except EvaluationError as error:
            note(str(error))
            return None
        if found < LEAST_ALIGNMENT:
            note(f"slide {self.placed.index.slide_id}: {column} may be off its tissue (alignment {found:.2f})")
        return round(found, 4)


def _to_compare(placed: PlacedScores, reader: SlideReader) -> tuple[NDArray[np.int32], RGB]:
    """Some tiles that lie wholly in the slide, spread over it, and their pixels, read at no more than 256 px a side."""
    index = placed.index
    foot = index.plan.footprint_px0
    whole = (index.x + foot.x <= index.size_px0.width) & (index.y + foot.y <= index.size_px0.height)
    inside = np.flatnonzero(whole).astype(np.int32)
    some = inside[np.linspace(0, len(inside) - 1, min(len(inside), ALIGNMENT_TILES)).astype(np.intp)]
    side = min(COMPARED_PX, index.plan.patch_size.width)
    plan = plan_footprint(reader.info.pyramid, foot, patch_px=side, target_mpp=index.plan.requested_mpp * foot.x / side)
    request = SlideTiles(0, index.slide_id, replace(index, plan=plan), lambda: nullcontext(reader), some)
    return some, read_tiles(request)
