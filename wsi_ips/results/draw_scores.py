"""Draw another model's tile scores over their slide, from a file of scores and the slide alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import HandoffSection, HeatmapSection
from wsi_ips.errors import ScoresError
from wsi_ips.provenance import fingerprint
from wsi_ips.results.handoff_formats import HANDOFF_FORMATS
from wsi_ips.results.handoff_package import Material, write_package
from wsi_ips.results.overlay import Caption, View, draw_overlay, sidecar, write_overlay
from wsi_ips.results.score_maps import attention_rank
from wsi_ips.results.score_raster import ScoreMaps, tile_geometry
from wsi_ips.results.slide_heatmaps import ALIGNMENT_TILES, ReadAgain, checked_alignment, view_of
from wsi_ips.slides import RGB, SlideInfo, SlideReader, open_slide
from wsi_ips.slides.source import slide_name
from wsi_ips.tiles.interop.coordinate_import import plan_footprint
from wsi_ips.tiles.interop.scored_tiles import PlacedScores, place_scores, read_scored, with_footprint
from wsi_ips.tiles.stream import SlideTiles, read_tiles

SCHEMA_VERSION = 1
DrawAs = Literal["auto", "probability", "rank"]
ATTENTION = re.compile("att(entio)?n", re.IGNORECASE)  # no probability, even if a softmax has brought it to 0-1
READ_PX = 256  # side at which tiles are read again for the self-test and the gallery, px


@dataclass(frozen=True)
class ScoresToDraw:
    """A file of scores, its slide, and how to draw them."""

    scores: Path
    slide: Path
    columns: Sequence[str] = ()  # scores to draw; empty = all in the file
    # probability: on the fixed scale of 0 to 1; rank: within the slide; auto: as a probability if all values are 0-1
    # and the name does not contain "attention"
    draw_as: DrawAs = "auto"
    tile_px0: float | None = None  # size of a tile, or the file that has it, where the scores do not contain it
    patches: Path | None = None
    mpp: float | None = None  # µm per level-0 pixel, for slides that do not state it


@dataclass(frozen=True)
class DrawnMap:
    """Picture and package of one column."""

    column: str
    kind: str  # score map whose colours it has; attention = drawn as a rank
    path: Path
    package: Path | None  # None if no format is wanted
    alignment: float | None  # about 1 if the map lies on its tissue; None if nothing could be compared


def draw_scores(
    wanted: ScoresToDraw,
    output: Path,
    *,
    pictures: HeatmapSection,
    handoff: HandoffSection,
    note: Callable[[str], None],
) -> list[DrawnMap]:
    """Draw every column of a file of scores over its slide.

    Writes ``<slide>_<column>.png``, its sidecar, and a package ``<slide>_<column>/`` for each. The package of a rank
    map has no outlines, as ranks show no lesion edges. Raises ScoresError or TileIndexError where the file
    cannot be used or contradicts the slide, and SlideError.
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
    digest = hashlib.sha256(wanted.scores.read_bytes()).hexdigest()
    made_from = fingerprint("other_scores", SCHEMA_VERSION, list(scored.footprint_px0 or ()), digest)
    return place_scores(scored, info, slide_id=stem, fingerprint=made_from)


def map_kind(column: str, values: NDArray[np.float64], draw_as: DrawAs) -> str:
    """Return the score map whose colours a column gets; raises ScoresError where it cannot be a probability."""
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
    """Return the file name of each column's map, without suffix; raises ScoresError where two would be the same."""
    names = {
        column: f"{slide_id}_{re.sub(r'[^0-9A-Za-z._-]+', '-', column).strip('-') or 'score'}" for column in columns
    }
    twice = [f"`{column}`" for column, name in names.items() if list(names.values()).count(name) > 1]
    if twice:
        raise ScoresError(f"columns {', '.join(twice)} would have the same file name; choose one with --column")
    return names


@dataclass(frozen=True)
class _Page:
    """Data shared by all maps of a file."""

    wanted: ScoresToDraw
    view: View
    placed: PlacedScores
    pictures: HeatmapSection
    handoff: HandoffSection
    reader: SlideReader
    note: Callable[[str], None]

    def draw(self, column: str, output: Path, name: str) -> DrawnMap:
        """Write picture, sidecar and package of one column."""
        values, path, index = self.placed.columns[column], output / f"{name}.png", self.placed.index
        kind = map_kind(column, values, self.wanted.draw_as)
        ranked = kind == "attention"
        maps = ScoreMaps(
            slide_id=name,
            class_name=column,
            probability=None,
            model_id=f"unknown to this program, scores from {self.wanted.scores.name}",
            fingerprint=fingerprint(index.fingerprint, column, self.wanted.draw_as),
            scores={column: np.asarray(attention_rank(values) if ranked else values, np.float32)},
            threshold=self.handoff.threshold,
            **tile_geometry(index),
        )
        caption = Caption(
            slide_id=index.slide_id,
            class_name=column,
            probability=None,
            model_id=maps.model_id,
            title=f"{column}: " + ("rank within this slide" if ranked else "as it is, 0 to 1"),
            meaning=f"rank of {column} within this slide" if ranked else f"{column} of each tile",
        )
        picture = draw_overlay(self.view, maps.raster, caption, kind=kind)
        made_from = fingerprint(maps.fingerprint, self.pictures)
        facts = sidecar(self.view, maps.raster, caption, kind=kind, fingerprint=made_from)
        facts |= {"score_range": [float(values.min()), float(values.max())], "source": self.wanted.scores.name}
        facts["alignment"] = checked_alignment(picture, facts, self.compared, column, self.note)
        write_overlay(path, picture, facts)
        formats = [f for f in self.handoff.formats if not (ranked and HANDOFF_FORMATS[f].outlines)]
        if formats:
            material = Material(overlays=[path], read_tiles=self._read, readable=self.whole)
            write_package(output / name, maps, material, formats=formats)
        return DrawnMap(column, kind, path, output / name if formats else None, facts["alignment"])

    @cached_property
    def whole(self) -> NDArray[np.int32]:
        """Tiles that lie entirely in the slide; only those can be read."""
        index, foot = self.placed.index, self.placed.index.plan.footprint_px0
        inside = (index.x + foot.x <= index.size_px0.width) & (index.y + foot.y <= index.size_px0.height)
        return np.flatnonzero(inside).astype(np.int32)

    @cached_property
    def compared(self) -> ReadAgain:
        """Some tiles spread over the slide."""
        steps = np.linspace(0, len(self.whole) - 1, min(len(self.whole), ALIGNMENT_TILES)).astype(np.intp)
        tiles, index = self.whole[steps], self.placed.index
        return ReadAgain(self._read(tiles), index.x[tiles], index.y[tiles])

    def _read(self, tiles: NDArray[np.int32]) -> RGB:
        """Return the pixels of tiles, at no more than 256 px a side, shape (k, h, w, 3)."""
        index = self.placed.index
        foot, side = index.plan.footprint_px0, min(READ_PX, index.plan.patch_size.width)
        target_mpp = index.plan.requested_mpp * foot.x / side
        plan = plan_footprint(self.reader.info.pyramid, foot, patch_px=side, target_mpp=target_mpp)
        return read_tiles(
            SlideTiles(0, index.slide_id, replace(index, plan=plan), lambda: nullcontext(self.reader), tiles)
        )
