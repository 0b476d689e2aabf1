"""What the outlines of training slides say of their tiles: reads the files, and says what cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from wsi_ips.annotations import NONE, Area, Classes, counted, read_areas
from wsi_ips.config import PlannedTraining
from wsi_ips.errors import AnnotationError, few
from wsi_ips.geometry import Point
from wsi_ips.labels import Task
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.tiles.index import TileIndex
from wsi_ips.training.settings import LabelledSlide
from wsi_ips.training.tile_truth import is_unknown, tile_truth


def uses_outlines(training: PlannedTraining) -> bool:
    """Return whether a training learns from outlines."""
    return training.known_tiles > 0 or (training.start == "outlines" and training.start_epochs > 0)


def with_truth(
    slides: Sequence[LabelledSlide],
    records: Sequence[SlideRecord],
    tasks: Sequence[Task],
    note: Callable[[str], None],
    classes: Classes | None = None,
) -> list[LabelledSlide]:
    """Add what is known of single tiles to slides; none gets anything where no outline lies in a tile.

    A slide whose outlines cannot be used stays weakly labelled, and a note names it. Inside outlines of unknown classes
    nothing is known; ``classes`` is `tiles.annotation_classes`.

    Raises
    ------
    AnnotationError
        An outline file cannot be read, or it is not clear of which class of the recipe it is; names the slide.
    """
    found, outside, contradicting = [], [], []
    unknown: Counter[str] = Counter()
    doubtful = []
    for slide, record in zip(slides, records, strict=True):
        index = slide.tiles.index
        areas = None if record.annotation is None else _areas(record, index, classes)
        complete = record.outlines != "partial"
        truth = tile_truth(index, slide.targets, tasks, areas, complete=complete)
        found.append(replace(slide, truth=truth))
        names = [area.classification or NONE for area in areas or () if is_unknown(area, tasks)]
        unknown.update(names)
        if names:
            doubtful.append(record.slide_id)
        elif areas and tasks[0].is_negative(slide.targets[0]):
            contradicting.append(record.slide_id)
        elif areas and (truth is None or not len(truth.tiles)):
            outside.append(record.slide_id)
    _note_unused(note, unknown, doubtful, outside, contradicting)
    taught = [0 if slide.truth is None else int((~np.isnan(slide.truth.shares)).any(1).sum()) for slide in found]
    if not any(taught):
        return list(slides)
    count = sum(map(bool, taught))
    note(f"outlines on {count} of {len(slides)} training slides: {sum(taught)} tiles in them teach their own class")
    return found


def _note_unused(
    note: Callable[[str], None],
    unknown: Counter[str],
    doubtful: Sequence[str],
    outside: Sequence[str],
    contradicting: Sequence[str],
) -> None:
    """Name the slides whose outlines teach nothing, with the reason."""
    if doubtful:
        note(
            f"outlines of classes that are not known teach nothing: {counted(unknown)}, on {len(doubtful)} training "
            f"slides: {few(doubtful)}; say what they are in `tiles.annotation_classes`"
        )
    if outside:
        note(
            f"outlines of {len(outside)} training slides lie in no tile, so they teach nothing; are they of another "
            f"slide, or outside the tissue? {few(outside)}"
        )
    if contradicting:
        note(
            f"{len(contradicting)} training slides are labelled as without a finding but have outlines; what is inside "
            f"teaches nothing: {few(contradicting)}"
        )


def _areas(record: SlideRecord, index: TileIndex, classes: Classes | None) -> list[Area]:
    assert record.annotation is not None
    try:
        origin = Point(index.bounds.x, index.bounds.y)
        found = read_areas(record.annotation, bounds_origin=origin, classes=classes)
        return [area for area in found if not area.what]
    except AnnotationError as error:
        raise AnnotationError(
            f"slide {record.slide_id}: {error}; repair the file, or empty its cell `annotation` of the manifest",
            slide_id=record.slide_id,
        ) from error
