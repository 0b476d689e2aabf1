"""What ``wsi-ips view`` shows: the slides of a run with maps, tiles and annotations, or plain slide files."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pydantic import ValidationError

from wsi_ips.annotations import read_annotation
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.errors import (
    AnnotationError,
    CheckpointError,
    RecipeError,
    ScoresError,
    SlideError,
    SlideNotFoundError,
    TileIndexError,
    ViewerError,
)
from wsi_ips.geometry import Point
from wsi_ips.inference import SlideScores, read_scores
from wsi_ips.manifest import SlideRecord, discover_slides
from wsi_ips.model import read_card
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_predictions import checkpoint_folder, scores_fingerprint
from wsi_ips.pipeline.slide_states import read_states
from wsi_ips.pipeline.viewer_layers import layers_and_tiles
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.slides import RGB, SlideReader, read_patch
from wsi_ips.slides.source import is_url
from wsi_ips.tiles import TileIndex, read_index, stored_fingerprint
from wsi_ips.viewer import Collection, Detail, Download, Entry, SlideFiles, slide_version

RUN_MARKS = ("run.json", "slides.csv", "scores.zarr")
"""Any of these makes a folder a run folder."""
RECIPES = (".yaml", ".yml")
DETAILS_KEPT = 8
"""Slides whose maps are kept in memory."""
OUTLINE_TOLERANCE_PX0 = 1.0
"""Tolerance when simplifying outlines, too small to see; a lesion has tens of thousands of points."""


def collection_of(targets: Sequence[str]) -> Collection:
    """Return the slides of a run (folder or recipe), or of files, folders of slides and URLs.

    Raises
    ------
    WsiIpsError
        A run cannot be read, a file does not exist, or a run is mixed with other things.
    """
    runs = [target for target in targets if _is_run(target)]
    if runs and len(targets) > 1:
        raise ViewerError(f"{runs[0]} is a run: view one run at a time, without further slides")
    if runs:
        return RunCollection(Run.open(view_recipe(Path(runs[0]))))
    return SlideFiles([path for target in targets for path in _slide_files(target)])


def view_recipe(target: Path) -> Recipe:
    """Return the recipe of a run folder, or of a recipe file.

    Raises
    ------
    RecipeError
        It is neither, or the run in the folder is not finished, so that only its recipe file can describe it.
    """
    if not target.is_dir():
        return load_recipe(target)
    facts = RunFolder(target).facts
    try:
        stored = json.loads(facts.read_text(encoding="utf-8"))["recipe"]
        recipe = Recipe.model_validate(stored)
    except OSError as error:
        raise RecipeError(
            f"folder {target}: no finished run ({facts.name}: {error.strerror}); give the recipe instead of the folder"
        ) from error
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise RecipeError(
            f"folder {target}: {facts.name} holds no recipe of this version; give the recipe instead"
        ) from error
    moved = {"output": target.resolve()}
    if not recipe.manifest.exists() and recipe.manifest.is_relative_to(recipe.output):
        moved["manifest"] = target.resolve() / recipe.manifest.relative_to(recipe.output)  # the run folder was moved
    return recipe.model_copy(update=moved)


class RunCollection:
    """A :class:`wsi_ips.viewer.Collection` over a run; it only reads."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._records = {record.slide_id: record for record in run.records}
        self._details: OrderedDict[str, tuple[tuple[object, ...], Detail]] = OrderedDict()
        self._lock = threading.Lock()
        self.title = run.recipe.name
        self.classes = run.recipe.labels.classes
        self.reviews: Path | None = run.folder.database

    @property
    def model_id(self) -> str:
        """See :class:`wsi_ips.viewer.Collection`."""
        try:
            return read_card(checkpoint_folder(self._run)).model_id
        except CheckpointError:
            return ""

    def entries(self) -> list[Entry]:
        """See :class:`wsi_ips.viewer.Collection`; read again, as the run may still be going on."""
        folder = self._run.folder
        states = {state.slide_id: state for state in read_states(folder.database)}
        predictions = _predictions(folder.predictions, f"probability_{self.classes[-1]}")
        return [self._entry(record, states.get(record.slide_id), predictions) for record in self._records.values()]

    def open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        """See :class:`wsi_ips.viewer.Collection`."""
        return self._run.opener(self._records[slide_id])()

    def detail(self, slide_id: str) -> Detail:
        """See :class:`wsi_ips.viewer.Collection`; kept until the stored scores or tiles change."""
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
        """See :class:`wsi_ips.viewer.Collection`."""
        record = self._records[slide_id]
        try:
            index = read_index(self._run.folder.tiles, slide_id, slice(tile, tile + 1))
        except TileIndexError as error:
            raise IndexError(tile) from error
        if len(index) == 0:
            raise IndexError(tile)
        with self._run.opener(record)() as reader:
            return read_patch(reader, Point(int(index.x[0]), int(index.y[0])), index.plan)

    def downloads(self, slide_id: str | None = None) -> list[Download]:
        """See :class:`wsi_ips.viewer.Collection`."""
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
        """See :class:`wsi_ips.viewer.Collection`."""
        self._run.pool.close()

    def _entry(self, record: SlideRecord, state: Any, predictions: dict[str, tuple[float, str]]) -> Entry:
        probability, predicted = predictions.get(record.slide_id, (None, ""))
        return Entry(
            slide_id=record.slide_id,
            version=slide_version(record.path),
            state=state.state if state else "pending",
            reason=state.reason if state else "",
            label=record.label or "",
            split=record.split or "",
            probability=probability,
            predicted=predicted,
            tiles=state.tiles if state else None,
            tissue_mm2=state.tissue_mm2 if state else None,
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
        with self._run.opener(record)() as reader:
            return Point(reader.info.bounds.x, reader.info.bounds.y)

    def _make_detail(self, record: SlideRecord) -> Detail:
        notes: list[str] = []
        index = _or_note(notes, lambda: self._run.index(record))
        outlines = None
        if record.annotation is not None:
            path = record.annotation
            outlines = _or_note(notes, lambda: _outlines(path, self._origin(record, index)))
        if index is None:
            return Detail(outlines=outlines, notes=tuple(notes))
        scores = _or_note(notes, lambda: self._scores(record, index, notes))
        layers, table = layers_and_tiles(index, scores, self._run.recipe.heatmap.maps)
        side_um = index.plan.patch_size.width * index.plan.effective_mpp.x
        facts = [("tiles", f"{len(index)} of {side_um:.0f} µm, {index.plan.effective_mpp.x:.3g} µm/px")]
        if scores:
            facts.append(("model", self.model_id))
        return Detail(table, layers, outlines, tuple(notes), tuple(facts))

    def _scores(self, record: SlideRecord, index: TileIndex, notes: list[str]) -> SlideScores:
        scores = read_scores(self._run.folder.scores, record.slide_id)
        if len(scores.tile_probability) != len(index):
            raise ScoresError(
                f"scores of slide {record.slide_id}: {len(scores.tile_probability)} for {len(index)} tiles; run "
                "`wsi-ips predict` again"
            )
        try:
            model = checkpoint_fingerprint(checkpoint_folder(self._run))
        except CheckpointError:
            return scores
        if scores.fingerprint != scores_fingerprint(self._run, record, model):
            notes.append("the maps come from an older model or older tiles; run `wsi-ips predict` again")
        return scores


def _outlines(annotation: Path, origin: Point) -> tuple[tuple[NDArray[np.float64], ...], ...]:
    """Rings of the annotated lesions, the outer one of each first."""
    regions = read_annotation(annotation, bounds_origin=origin)
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
        table = pd.read_csv(path, dtype={"slide_id": str, "predicted": str}, keep_default_na=False)
    except (OSError, ValueError):
        return {}
    if column not in table:
        return {}
    return {str(r["slide_id"]): (float(r[column]), str(r["predicted"])) for r in table.to_dict("records")}


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
