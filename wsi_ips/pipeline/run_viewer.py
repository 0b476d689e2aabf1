"""Content of ``wsi-ips view``: the slides of a run with maps, tiles and annotations, or plain slide files."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from wsi_ips.annotations import Classes, read_annotation
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.errors import (
    AnnotationError,
    CheckpointError,
    EvaluationError,
    RecipeError,
    ScoresError,
    SlideError,
    SlideNotFoundError,
    TileIndexError,
    ViewerError,
)
from wsi_ips.geometry import Point, Scale
from wsi_ips.inference.slide_scores import SlideScores, read_scores
from wsi_ips.manifest.discovery import discover_slides
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint, read_card
from wsi_ips.pipeline.heatmap_stage import tissue_region
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_states import SlideState, read_states
from wsi_ips.provenance import parse_object
from wsi_ips.results.overlay import HATCH, palette
from wsi_ips.results.score_maps import SCORE_MAPS, ScoreMap
from wsi_ips.results.score_raster import index_raster, unseen_cells
from wsi_ips.slides import RGB, SlideReader, read_patch
from wsi_ips.slides.source import is_url
from wsi_ips.tables import number_of, read_table
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.store import read_index, stored_fingerprint
from wsi_ips.viewer.collection import (
    NO_TILE,
    Collection,
    Column,
    Detail,
    Download,
    Entry,
    Layer,
    Look,
    SlideFiles,
    TileTable,
    eight_bits,
    slide_version,
)

RUN_MARKS = ("run.json", "run.sqlite", "scores.zarr")  # any of these makes a folder a run folder
RECIPES = (".yaml", ".yml")
DETAILS_KEPT = 8  # slides whose maps are kept in memory
OUTLINE_TOLERANCE_PX0 = 1.0  # too small to see; a lesion has tens of thousands of points
MOST_CELLS = 8_000_000  # largest map that is sent to the browser, values
FIRST_KEY = 2  # key of the first map; 1 shows H&E alone
TRUTH = Look(
    kind="truth",
    title="Annotated tumour",
    legend=("none", "half", "whole tile"),
    strength=(0.25, 0.75, 1),
    verb="Annotated",
    draws="outlines",
    lowest=2,
)
TISSUE = Look(
    kind="tissue",
    title="Tissue and tiles",
    legend=("none", "half", "whole tile"),
    strength=(0.2, 0.35, 1),
    verb="Tiled",
    draws="grid",
)


UNSEEN = Look("unseen", "Tissue not analysed", ("tissue in no tile",), strength=(0.8, 0, 1), verb="Not analysed")


def collection_of(targets: Sequence[str]) -> Collection:
    """Return the slides of a run (folder or recipe), or of files, folders of slides and URLs; raises WsiIpsError."""
    runs = [target for target in targets if _is_run(target)]
    if runs and len(targets) > 1:
        raise ViewerError(f"{runs[0]} is a run: view one run at a time, without further slides")
    if runs:
        return RunCollection(Run.open(view_recipe(Path(runs[0]))))
    return SlideFiles([path for target in targets for path in _slide_files(target)])


def view_recipe(target: Path) -> Recipe:
    """Return the recipe of a finished run folder, or of a recipe file; raises RecipeError."""
    if not target.is_dir():
        return load_recipe(target)
    facts = RunFolder(target).facts
    try:
        stored = parse_object(facts.read_bytes())["recipe"]
        recipe = Recipe.model_validate(stored)
    except OSError as error:
        raise RecipeError(
            f"folder {target}: no finished run ({facts.name}: {error.strerror}); give the recipe instead of the folder"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"folder {target}: {facts.name} holds no recipe of this version; give the recipe instead"
        ) from error
    moved = {"output": target.resolve()}
    if not recipe.manifest.exists() and recipe.manifest.is_relative_to(recipe.output):
        moved["manifest"] = target.resolve() / recipe.manifest.relative_to(recipe.output)  # the run folder was moved
    return recipe.model_copy(update=moved)


class RunCollection:
    """A :class:`wsi_ips.viewer.collection.Collection` over a run; it only reads."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._records = {record.slide_id: record for record in run.slides.records}
        self._details: OrderedDict[str, tuple[tuple[object, ...], Detail]] = OrderedDict()
        self._lock = threading.Lock()
        self.title = run.recipe.name
        self.classes = run.recipe.labels.classes
        self.reviews: Path | None = run.folder.database

    @property
    def model_id(self) -> str:
        """See :class:`wsi_ips.viewer.collection.Collection`."""
        try:
            return read_card(self._run.predictions.checkpoint).model_id
        except CheckpointError:
            return ""

    def entries(self) -> list[Entry]:
        """See :class:`wsi_ips.viewer.collection.Collection`; read again, as the run may still be active."""
        folder = self._run.folder
        states = {state.slide_id: state for state in read_states(folder.database)}
        predictions = _predictions(folder.predictions, f"probability_{self.classes[-1]}")
        return [
            self._entry(r, states.get(r.slide_id, SlideState(r.slide_id)), predictions)
            for r in self._run.slides.records
        ]

    def open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        """See :class:`wsi_ips.viewer.collection.Collection`."""
        return self._run.slides.opener(self._records[slide_id])()

    def detail(self, slide_id: str) -> Detail:
        """See :class:`wsi_ips.viewer.collection.Collection`; kept until the stored scores or tiles change."""
        record = self._records[slide_id]
        state = self._stored_state(slide_id)
        with self._lock:
            known = self._details.get(slide_id)
        if known is None or known[0] != state:
            known = (state, self._make_detail(record))
        with self._lock:
            self._details[slide_id] = known
            self._details.move_to_end(slide_id)
            while len(self._details) > DETAILS_KEPT:
                self._details.popitem(last=False)
        return known[1]

    def patch(self, slide_id: str, tile: int) -> RGB:
        """See :class:`wsi_ips.viewer.collection.Collection`."""
        record = self._records[slide_id]
        try:
            index = read_index(self._run.folder.tiles, slide_id)
        except TileIndexError as error:
            raise IndexError(tile) from error
        if tile >= len(index):
            raise IndexError(tile)
        with self._run.slides.opener(record)() as reader:
            return read_patch(reader, Point(int(index.x[tile]), int(index.y[tile])), index.plan)

    def downloads(self, slide_id: str | None = None) -> list[Download]:
        """See :class:`wsi_ips.viewer.collection.Collection`."""
        folder = self._run.folder
        if slide_id is None:
            offered = [
                Download(folder.predictions.name, "Predictions (CSV)", folder.predictions),
                Download(folder.states.name, "States of all slides (CSV)", folder.states),
                Download(f"{self.title}_report.html", "Report (HTML)", folder.report),
                Download(folder.summary.name, "Summary (JSON)", folder.summary),
                Download(folder.evaluation.name, "Evaluation (JSON)", folder.evaluation),
                Download(folder.facts.name, "Recipe and versions (JSON)", folder.facts),
            ]
        else:
            if slide_id not in self._records:
                raise KeyError(slide_id)
            offered = [_picture(folder.tissue_picture(slide_id), "Tissue and tiles", slide_id)]
            for kind in self._run.recipe.heatmap.maps:
                title, path = SCORE_MAPS[kind].title, folder.overlay(slide_id, kind)
                offered.append(_picture(path, f"{title} map", slide_id))
                offered.append(_picture(path.with_suffix(".json"), f"{title} map: where it lies", slide_id))
        return [download for download in offered if download.path.is_file()]

    def close(self) -> None:
        """See :class:`wsi_ips.viewer.collection.Collection`."""
        self._run.slides.pool.close()

    def _entry(self, record: SlideRecord, state: SlideState, predictions: dict[str, tuple[float, str]]) -> Entry:
        probability, predicted = predictions.get(record.slide_id, (None, ""))
        return Entry(
            slide_id=record.slide_id,
            version=slide_version(record.path),
            state=state.state,
            reason=state.reason,
            label=record.label or "",
            split=record.split or "",
            probability=probability,
            predicted=predicted,
            tiles=state.tiles,
            tissue_mm2=state.tissue_mm2,
        )

    def _stored_state(self, slide_id: str) -> tuple[object, ...]:
        """Value that changes when the tiles, scores or annotation of a slide change."""
        folder, record = self._run.folder, self._records[slide_id]
        paths = [folder.scores / slide_id / "zarr.json", *([record.annotation] if record.annotation else [])]
        written = [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]
        return (stored_fingerprint(folder.tiles, slide_id), *written)

    def _origin(self, record: SlideRecord, index: TileIndex | None) -> Point:
        """Corner of the scanned part; QuPath counts from it if a slide states its bounds."""
        if index is not None:
            return Point(index.bounds.x, index.bounds.y)
        with self._run.slides.opener(record)() as reader:
            return Point(reader.info.bounds.x, reader.info.bounds.y)

    def _make_detail(self, record: SlideRecord) -> Detail:
        notes: list[str] = []
        index = _or_note(notes, lambda: self._run.slides.index(record))
        outlines = None
        if record.annotation is not None:
            path, classes = record.annotation, self._run.slides.tiling.tiles.annotation_classes
            outlines = _or_note(notes, lambda: _outlines(path, self._origin(record, index), classes))
        if index is None:
            return Detail(outlines=outlines, notes=tuple(notes))
        scores = _or_note(notes, lambda: self._scores(record, index, notes))
        layers, table = layers_and_tiles(index, scores, self._run.recipe.heatmap.maps)
        side_um = index.plan.patch_size.width * index.plan.effective_mpp.x
        facts = [("tiles", f"{len(index)} of {side_um:.0f} µm, {index.plan.effective_mpp.x:.3g} µm/px")]
        state = {row.slide_id: row for row in read_states(self._run.folder.database)}.get(record.slide_id)
        if state is not None and state.not_analysed is not None:
            facts.append(("not analysed", str(state.not_analysed)))
            tissue = tissue_region(self._run.folder.tissue_outline(record.slide_id), index, notes.append)
            if tissue is not None and layers:
                bare, cell = unseen_cells(index, tissue, MOST_CELLS // 4)
                look, ink = replace(UNSEEN, key=layers[-1].look.key + 1), np.tile(np.array(HATCH, np.uint8), (256, 1))
                layers = (*layers, Layer(look, np.where(bare, np.uint8(255), NO_TILE), Point(0, 0), cell, ink))
        return Detail(table, layers, outlines, tuple(notes), tuple(facts))

    def _scores(self, record: SlideRecord, index: TileIndex, notes: list[str]) -> SlideScores:
        scores = read_scores(self._run.folder.scores, record.slide_id)
        if len(scores.tile_probability) != len(index):
            raise ScoresError(
                f"scores of slide {record.slide_id}: {len(scores.tile_probability)} for {len(index)} tiles; run "
                "`wsi-ips predict` again"
            )
        try:
            model = checkpoint_fingerprint(self._run.predictions.checkpoint)
        except CheckpointError:
            return scores
        if scores.fingerprint != self._run.predictions.fingerprint(record, model):
            notes.append("the maps come from an older model or older tiles; run `wsi-ips predict` again")
        return scores


def _outlines(annotation: Path, origin: Point, classes: Classes) -> tuple[tuple[NDArray[np.float64], ...], ...]:
    """Rings of the annotated lesions, the outer one of each first."""
    regions = read_annotation(annotation, bounds_origin=origin, classes=classes)
    lesions = [shapely.simplify(lesion, OUTLINE_TOLERANCE_PX0) for lesion in regions.lesions()]
    return tuple(
        tuple(shapely.get_coordinates(ring)[:-1] for ring in (lesion.exterior, *lesion.interiors)) for lesion in lesions
    )


def _or_note(notes: list[str], read: Callable[[], Any]) -> Any:
    """Return what ``read`` returns, or None and add a note why it cannot be read."""
    try:
        return read()
    except (AnnotationError, SlideError, TileIndexError, ScoresError) as error:
        notes.append(str(error))
        return None


def _predictions(path: Path, column: str) -> dict[str, tuple[float, str]]:
    """Probability of the positive class and predicted class by slide_id; empty if nothing was predicted."""
    try:
        rows = read_table(path, "predictions", EvaluationError).rows
        return {r.cells["slide_id"]: (number_of(r.cells[column]), r.cells["predicted"]) for r in rows}
    except (KeyError, ValueError):
        return {}


def _picture(path: Path, title: str, slide_id: str) -> Download:
    name = path.name if path.name != f"{slide_id}.png" else f"{slide_id}_tissue.png"
    return Download(name, f"{title} ({path.suffix[1:].upper()})", path)


def _is_run(target: str) -> bool:
    if is_url(target):
        return False
    path = Path(target)
    return path.suffix in RECIPES or (path.is_dir() and any((path / mark).exists() for mark in RUN_MARKS))


def _slide_files(target: str) -> list[Path | str]:
    if is_url(target):
        return [target]
    path = Path(target)
    if path.is_dir():
        return [Path(str(found)) for found in discover_slides(path)["path"]]
    if not path.exists():
        raise SlideNotFoundError(f"{target}: no such slide, folder or recipe")
    return [path]


def map_look(score_map: ScoreMap, key: int) -> Look:
    """Return how the viewer shows a score map; ``key`` is the number that selects it on the keyboard."""
    return Look(
        kind=score_map.name,
        key=key,
        title=score_map.title,
        legend=score_map.marks,
        strength=(0, 1, score_map.opacity_power),
        threshold=score_map.first_threshold,
        comparable=score_map.comparable,
        from_model=True,
    )


def layers_and_tiles(
    index: TileIndex, scores: SlideScores | None, maps: Sequence[str]
) -> tuple[tuple[Layer, ...], TileTable]:
    """Return what the viewer shows of a tiled slide; ``scores`` is None where the slide is not predicted."""
    truth, tissue = index.tumour_fraction, np.asarray(index.tissue_fraction, np.float32)
    shown: list[tuple[Look, str, NDArray[np.float32]]] = []
    if scores is not None:
        for key, entry in enumerate((SCORE_MAPS[kind] for kind in maps), FIRST_KEY):
            shown.append((map_look(entry, key), entry.colours, entry.values(scores)))
    if truth is not None:
        shown.append((replace(TRUTH, key=FIRST_KEY + len(maps)), "Oranges", np.asarray(truth, np.float32)))
    shown.append((replace(TISSUE, key=FIRST_KEY + len(maps) + 1), "Greens", tissue))
    values = {look.kind: of_tiles for look, _, of_tiles in shown}
    columns = []
    for look, *_ in shown:
        shown_as = ("number" if look.comparable else "rank") if look.from_model else "share"
        columns.append(Column(look.kind, look.title, shown_as, ranked=look.kind != TISSUE.kind))
    if scores is not None:
        values["weight"] = np.asarray(scores.attention * len(index), np.float32)
        columns.append(Column("weight", "Attention / mean", "times"))
    table = TileTable(
        columns={"x": index.x, "y": index.y, **values},
        shown=tuple(columns),
        origin_px0=Point(index.grid.x, index.grid.y),
        stride_px0=index.stride_px0,
        footprint_px0=index.plan.footprint_px0,
        patch_size=index.plan.patch_size,
        patch_mpp=index.plan.effective_mpp,
    )
    layers = tuple(layer_of(index, look, colours, of_tiles) for look, colours, of_tiles in shown) if len(index) else ()
    return layers, table


def layer_of(index: TileIndex, look: Look, colours: str, score: NDArray[np.float32]) -> Layer:
    """Return a layer whose cells are fine enough to lie wholly inside or outside every tile.

    Stride and tile size are whole numbers of patch pixels, so cells of their greatest common divisor are fine enough:
    one cell per tile where tiles lie side by side. Where that gives too many cells, they are larger and the edges of
    tiles less exact.
    """
    raster = index_raster(index, score)
    rows, columns = raster.starts.shape
    fine = index.stride_px // math.gcd(index.stride_px, index.plan.patch_size.width, index.plan.patch_size.height)
    parts = max(1, min(fine, math.isqrt(MOST_CELLS // max(1, rows * columns))))
    cell = Scale(raster.cell_px0.x / parts, raster.cell_px0.y / parts)
    x = raster.origin_px0.x + (np.arange(columns * parts) + 0.5) * cell.x
    y = raster.origin_px0.y + (np.arange(rows * parts) + 0.5) * cell.y
    return Layer(look, eight_bits(raster.sample(x, y)), raster.origin_px0, cell, palette(colours))
