"""Draw the scores that another model gave the tiles of a slide, from a file of scores and the slide alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import HandoffSection, HeatmapSection
from wsi_ips.errors import EvaluationError, ScoresError
from wsi_ips.provenance import fingerprint
from wsi_ips.results.alignment import ALIGNMENT_TILES, LEAST_ALIGNMENT, alignment_correlation
from wsi_ips.results.handoff.content import Material
from wsi_ips.results.handoff.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.handoff.maps import ScoreMaps
from wsi_ips.results.handoff.package import write_package
from wsi_ips.results.overlay import Caption, View, draw_overlay, sidecar, write_overlay
from wsi_ips.results.score_values import attention_rank
from wsi_ips.results.slide_heatmaps import view_of
from wsi_ips.slides import RGB, SlideInfo, SlideReader, open_slide
from wsi_ips.slides.source import slide_name
from wsi_ips.tiles.interop.coordinate_import import plan_footprint
from wsi_ips.tiles.interop.scored_tiles import PlacedScores, place_scores, read_scored, with_footprint
from wsi_ips.tiles.stream import SlideTiles, read_tiles

SCHEMA_VERSION = 1
DrawAs = Literal["auto", "probability", "rank"]
ATTENTION = re.compile("att(entio)?n", re.IGNORECASE)
"""Attention is not a probability, even if a softmax has brought it to 0-1."""
READ_PX = 256
"""Side at which tiles are read again for the self-test and the gallery, px."""
OUTLINES = frozenset({"geojson", "asap", "lesions"})


@dataclass(frozen=True)
class ScoresToDraw:
    """A file of scores, its slide, and how to draw them.

    Attributes
    ----------
    scores, slide
        File of scored tiles, and the slide.
    columns
        Scores to draw; empty = all in the file.
    draw_as
        ``probability``: on the fixed scale of 0 to 1; ``rank``: within the slide; ``auto``: as a probability if all
        values are 0-1 and the name does not contain "attention".
    tile_px0, patches
        Size of a tile if the file does not contain it, see :func:`wsi_ips.tiles.interop.with_footprint`.
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
    """Picture and package of one column; ``kind`` attention = drawn as a rank.

    ``package`` is None if no format is wanted, ``alignment`` (about 1 if the map lies on its tissue) if nothing could
    be compared.
    """

    column: str
    kind: str
    path: Path
    package: Path | None
    alignment: float | None


def draw_scores(
    wanted: ScoresToDraw,
    output: Path,
    *,
    pictures: HeatmapSection,
    handoff: HandoffSection,
    note: Callable[[str], None],
) -> list[DrawnMap]:
    """Draw every column of a file of scores over its slide.

    Parameters
    ----------
    wanted
        What to draw.
    output
        Folder for ``<slide>_<column>.png``, their sidecars, and a package ``<slide>_<column>/`` for each.
    pictures
        Scale, size and opacity of the pictures.
    handoff
        What the packages contain; a rank map gets no outlines, as a rank does not say where a lesion ends.
    note
        Called with what was done to tiles of the file, and with what is odd.

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
        names = picture_names(placed.columns, placed.index.slide_id)
        page = _Page(wanted, view_of(reader, placed.index, pictures.mpp, None), placed, pictures, handoff, reader, note)
        return [page.draw(column, output, names[column]) for column in placed.columns]


def placed_scores(wanted: ScoresToDraw, info: SlideInfo) -> PlacedScores:
    """Read the file and place its scores on the slide; raises as :func:`draw_scores` does."""
    stem = PurePosixPath(slide_name(wanted.slide)).stem
    scored = read_scored(wanted.scores, columns=wanted.columns, slide_names=(stem, slide_name(wanted.slide)))
    scored = with_footprint(scored, tile_px0=wanted.tile_px0, patches=wanted.patches)
    foot = list(scored.footprint_px0 or ())
    made_from = fingerprint(
        "other_scores", SCHEMA_VERSION, foot, hashlib.sha256(wanted.scores.read_bytes()).hexdigest()
    )
    return place_scores(scored, info, slide_id=stem, fingerprint=made_from)


def map_kind(column: str, values: NDArray[np.float64], draw_as: DrawAs) -> str:
    """Decide how to draw a column.

    Raises
    ------
    ScoresError
        A probability is wanted, and the values are not in 0-1.
    """
    low, high = float(values.min()), float(values.max())
    within = low >= 0 and high <= 1
    if draw_as == "probability" and not within:
        raise ScoresError(
            f"`{column}` ranges from {low:.4g} to {high:.4g}: no probability (0 to 1); leave out --as for a rank map"
        )
    if draw_as == "rank" or (draw_as == "auto" and (not within or ATTENTION.search(column))):
        return "attention"
    return "probability"


def picture_names(columns: Iterable[str], slide_id: str) -> dict[str, str]:
    """Return the file name, without suffix, of the map of each column.

    Raises
    ------
    ScoresError
        Two columns would have the same file name.
    """
    names = {
        column: f"{slide_id}_{re.sub(r'[^0-9A-Za-z._-]+', '-', column).strip('-') or 'score'}" for column in columns
    }
    twice = [column for column, name in names.items() if list(names.values()).count(name) > 1]
    if twice:
        raise ScoresError(
            f"columns {', '.join(f'`{c}`' for c in twice)} would have the same file name; choose one with --column"
        )
    return names


@dataclass(frozen=True)
class _Page:
    """What all maps of a file share."""

    wanted: ScoresToDraw
    view: View
    placed: PlacedScores
    pictures: HeatmapSection
    handoff: HandoffSection
    reader: SlideReader
    note: Callable[[str], None]

    def draw(self, column: str, output: Path, name: str) -> DrawnMap:
        """Write picture, sidecar and package of one column."""
        values, path = self.placed.columns[column], output / f"{name}.png"
        kind = map_kind(column, values, self.wanted.draw_as)
        maps = self._maps(column, name, values if kind == "probability" else attention_rank(values))
        caption = Caption(
            slide_id=self.placed.index.slide_id,
            class_name=column,
            probability=None,
            model_id=maps.model_id,
            title=f"{column}: " + ("as it is, 0 to 1" if kind == "probability" else "rank within this slide"),
            meaning=f"{column} of each tile" if kind == "probability" else f"rank of {column} within this slide",
        )
        picture = draw_overlay(self.view, maps.raster, caption, kind=kind)
        made_from = fingerprint(maps.fingerprint, self.pictures)
        facts = sidecar(self.view, maps.raster, caption, kind=kind, fingerprint=made_from)
        facts |= {"score_range": [float(values.min()), float(values.max())], "source": self.wanted.scores.name}
        facts["alignment"] = self._alignment(np.asarray(picture), facts, column)
        write_overlay(path, picture, facts)
        return DrawnMap(column, kind, path, self._package(output / name, maps, kind, path), facts["alignment"])

    @cached_property
    def whole(self) -> NDArray[np.int32]:
        """Tiles that lie entirely in the slide; only those can be read."""
        index, foot = self.placed.index, self.placed.index.plan.footprint_px0
        inside = (index.x + foot.x <= index.size_px0.width) & (index.y + foot.y <= index.size_px0.height)
        return np.flatnonzero(inside).astype(np.int32)

    @cached_property
    def compared(self) -> tuple[NDArray[np.int32], RGB]:
        """Some tiles spread over the slide, and their pixels."""
        steps = np.linspace(0, len(self.whole) - 1, min(len(self.whole), ALIGNMENT_TILES)).astype(np.intp)
        return self.whole[steps], self._read(self.whole[steps])

    def _maps(self, column: str, name: str, values: NDArray[np.floating]) -> ScoreMaps:
        index = self.placed.index
        return ScoreMaps(
            slide_id=name,
            class_name=column,
            probability=None,
            model_id=f"unknown to this program, scores from {self.wanted.scores.name}",
            fingerprint=fingerprint(index.fingerprint, column, self.wanted.draw_as),
            x=index.x,
            y=index.y,
            scores={column: np.asarray(values, np.float32)},
            threshold=self.handoff.threshold,
            size_px0=index.size_px0,
            bounds=index.bounds,
            grid=index.grid,
            stride_px0=index.stride_px0,
            footprint_px0=index.plan.footprint_px0,
            mpp=index.mpp,
        )

    def _package(self, folder: Path, maps: ScoreMaps, kind: str, overlay: Path) -> Path | None:
        formats = [f for f in self.handoff.formats if kind == "probability" or not HANDOFF_FORMATS[f].outlines]
        if not formats:
            return None
        material = Material(overlays=[overlay], read_tiles=self._read, readable=self.whole)
        write_package(folder, maps, material, formats=formats)
        return folder

    def _alignment(self, picture: RGB, facts: dict[str, Any], column: str) -> float | None:
        tiles, patches = self.compared
        index = self.placed.index
        try:
            found = alignment_correlation(picture, facts, patches, index.x[tiles], index.y[tiles])
        except EvaluationError as error:
            self.note(str(error))
            return None
        if found < LEAST_ALIGNMENT:
            self.note(f"slide {index.slide_id}: {column} may be off its tissue (alignment {found:.2f})")
        return round(found, 4)

    def _read(self, tiles: NDArray[np.int32]) -> RGB:
        """Pixels of tiles, at no more than 256 px a side, uint8, shape (k, h, w, 3)."""
        index = self.placed.index
        foot, side = index.plan.footprint_px0, min(READ_PX, index.plan.patch_size.width)
        target_mpp = index.plan.requested_mpp * foot.x / side
        plan = plan_footprint(self.reader.info.pyramid, foot, patch_px=side, target_mpp=target_mpp)
        return read_tiles(
            SlideTiles(0, index.slide_id, replace(index, plan=plan), lambda: nullcontext(self.reader), tiles)
        )
