"""Truth of single tiles: what outlines and labels say of each tile of a slide. Pure numbers; no file, no tensor.

An outline teaches the class that its group names. A group of the tumour (`tumor`, `_0`, `metastases` ...) that is no
class of the recipe teaches the class of the slide. A tile on an outline's border counts by the share of it that is
inside: a lesion of 0.2 mm consists of border tiles alone, and leaving them out would leave out the lesion.

What lies outside all outlines is background where they are complete, and unknown where they are partial. All tiles of
a slide that is known to show nothing are background. Tasks whose classes no outline names know nothing of single tiles.

Shapes: N tiles of a slide, K of them touched by an outline, n some of them, C classes of all tasks, C_t of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import (
    EXCLUDED_CLASSES,
    OTHER_CLASSES,
    TUMOUR_CLASSES,
    Area,
    class_of,
    joined_names,
    tumour_fraction,
)
from wsi_ips.errors import AnnotationClassError
from wsi_ips.labels import Target, Task
from wsi_ips.tiles.index import TileIndex

Shares = NDArray[np.float32]
WHOLE = 0.999  # share of a tile that counts as all of it
LEAST_WITHOUT_BACKGROUND = 0.5  # share of a tile that must be outlined where a task has no class for the rest


class Kind(NamedTuple):
    """What a tile can show: a class of a task, or that task's background (None)."""

    task: int
    shown: int | None


class Outlines(NamedTuple):
    """The outlines of one slide, in level-0 pixels."""

    regions: Mapping[Kind, BaseGeometry]
    contradicted: frozenset[int]  # tasks whose label says that the slide shows nothing: inside nothing is known
    unknown: BaseGeometry  # areas that may show anything, of classes that are not known: inside nothing is known


@dataclass(frozen=True)
class TileTruth:
    """What is known of each tile of one slide."""

    tasks: tuple[Task, ...]
    count: int  # N
    tiles: NDArray[np.int64]  # (K,), ids, ascending
    shares: Shares  # (K, C), of each class in them; NaN where unknown
    rest: Shares  # (C,), the same of every other tile
    outlines: Outlines

    def at(self, index: TileIndex) -> TileTruth:
        """Return the truth of the same tiles at the places that an index gives them."""
        shares, touched = np.tile(self.rest, (len(index), 1)), np.zeros(len(index), bool)
        for number, task in enumerate(self.tasks):
            regions = {kind.shown: region for kind, region in self.outlines.regions.items() if kind.task == number}
            if not regions:
                continue
            covered = {shown: tumour_fraction(region, index.boxes_px0) for shown, region in regions.items()}
            rows = covered.get(None, np.zeros(len(index))) >= WHOLE
            for shown, part in covered.items():
                rows |= (part > 0) & (shown is not None)
            columns = part_of(self.tasks, number)
            inside = {shown: part[rows] for shown, part in covered.items()}
            known = _task_shares(inside, task, shares[rows, columns])
            shares[rows, columns] = np.nan if number in self.outlines.contradicted else known
            touched |= rows
        hidden = tumour_fraction(self.outlines.unknown, index.boxes_px0) > 0
        shares[hidden] = np.nan
        touched |= hidden
        tiles = np.flatnonzero(touched)
        return replace(self, tiles=tiles, shares=shares[tiles])

    def of(self, tiles: NDArray[np.integer]) -> Shares:
        """Return the share of each class in some tiles, (n, C); NaN where unknown."""
        found = np.tile(self.rest, (len(tiles), 1))
        if len(self.tiles):
            row = np.minimum(np.searchsorted(self.tiles, tiles), len(self.tiles) - 1)
            is_touched = self.tiles[row] == tiles
            found[is_touched] = self.shares[row[is_touched]]
        return found

    def is_lesion(self, tiles: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return which tiles are known to show a class that is not background, at least in part, (n,)."""
        shares = self.of(tiles)
        weights = [_weight(shares, kind, self.tasks) for kind in kinds_of(self.tasks) if kind.shown is not None]
        return np.asarray(np.sum(weights, axis=0) > 0)

    def candidates(self, kind: Kind) -> int:
        """Return the number of tiles that show a kind, at least in part."""
        is_rest = _weight(self.rest[None], kind, self.tasks)[0] > 0
        touched = int(np.count_nonzero(_weight(self.shares, kind, self.tasks)))
        return touched + (self.count - len(self.tiles) if is_rest else 0)

    def draw(self, kind: Kind, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw different tiles that show a kind, at most ``count``; those that show more of it more often."""
        weight = _weight(self.shares, kind, self.tasks)  # (K,)
        if _weight(self.rest[None], kind, self.tasks)[0] > 0:
            others = np.setdiff1d(np.arange(self.count), self.tiles[weight == 0])
            return rng.permutation(others)[:count]
        count = min(count, int(np.count_nonzero(weight)))
        return rng.choice(self.tiles, count, replace=False, p=weight / weight.sum()) if count else self.tiles[:0]

    def draw_outside(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw different tiles that no outline touches, at most ``count``."""
        return rng.permutation(np.setdiff1d(np.arange(self.count), self.tiles))[:count]


def kinds_of(tasks: Sequence[Task]) -> list[Kind]:
    """Return everything that tiles can show, task by task."""
    found = []
    for number, task in enumerate(tasks):
        with_background = task.has_background
        first = int(with_background and task.kind == "single")
        found += [Kind(number, None)] if with_background else []
        found += [Kind(number, shown) for shown in range(first, task.width)]
    return found


def part_of(tasks: Sequence[Task], number: int) -> slice:
    """Return the columns of a task among the classes of all."""
    start = sum(task.width for task in tasks[:number])
    return slice(start, start + tasks[number].width)


def _weight(shares: Shares, kind: Kind, tasks: Sequence[Task]) -> NDArray[np.float64]:
    """Return how much of a kind tiles show, 0 to 1, 0 where unknown: (n, C) to (n,)."""
    part = shares[:, part_of(tasks, kind.task)].astype(np.float64)
    if kind.shown is not None:
        return np.nan_to_num(part[:, kind.shown])
    shown = part[:, 0] == 1 if tasks[kind.task].kind == "single" else (part == 0).all(1)
    return np.asarray(shown, np.float64)


def tile_truth(
    index: TileIndex, targets: Sequence[Target], tasks: Sequence[Task], areas: Sequence[Area] | None, *, complete: bool
) -> TileTruth | None:
    """Return what is known of a slide's tiles from its labels and its outlines (None: it has none); None if nothing.

    Raises
    ------
    AnnotationClassError
        It is not clear of which class of the recipe an area is.
    """
    regions, unknown = _regions(areas or (), targets, tasks, index.slide_id)
    rest = np.full(sum(task.width for task in tasks), np.nan, np.float32)
    negative = [number for number, task in enumerate(tasks) if task.is_negative(targets[number])]
    for number, task in enumerate(tasks):
        shown = {kind.shown: regions[kind] for kind in regions if kind.task == number and kind.shown is not None}
        columns = part_of(tasks, number)
        if number in negative:
            rest[columns] = _nothing(task)
        elif complete and any(tumour_fraction(region, index.boxes_px0).any() for region in shown.values()):
            if task.kind == "multi":  # outlines say nothing of the classes that none names
                rest[columns] = [0 if number in shown else np.nan for number in range(task.width)]
            elif task.has_background:
                rest[columns] = _nothing(task)
    none, outlines = np.empty((0, len(rest)), np.float32), Outlines(regions, frozenset(negative), unknown)
    truth = TileTruth(tuple(tasks), len(index), np.empty(0, np.int64), none, rest, outlines).at(index)
    return None if np.isnan(rest).all() and np.isnan(truth.shares).all() else truth


def _nothing(task: Task) -> Shares:
    """Return the target of a tile that shows nothing, (C_t,)."""
    row = np.zeros(task.width, np.float32)
    row[:1] = task.kind == "single"
    return row


def _task_shares(covered: Mapping[int | None, Shares], task: Task, rest: Shares) -> Shares:
    """Return the share of each class of a task in n tiles, (n, C_t), from how much of each is outlined.

    ``rest`` is what would be known of them without outlines, (n, C_t).
    """
    shares = rest.copy() if task.kind == "multi" else np.zeros_like(rest)
    for shown, part in covered.items():
        if shown is not None:
            shares[:, shown] = part
    if task.kind == "multi":
        return shares
    outlined = shares.sum(1, keepdims=True)  # (n, 1); over 1 where outlines of two classes overlap
    if task.has_background:
        shares /= np.maximum(outlined, 1)
        shares[:, 0] = 1 - shares[:, 1:].sum(1)
        return shares
    known = outlined >= LEAST_WITHOUT_BACKGROUND
    return np.where(known, shares / np.maximum(outlined, 1e-6), np.nan).astype(np.float32)


def _regions(
    areas: Sequence[Area], targets: Sequence[Target], tasks: Sequence[Task], slide_id: str
) -> tuple[dict[Kind, BaseGeometry], BaseGeometry]:
    """Return the outlined region of each kind, and that of unknown classes outside all others.

    Holes, and areas of a background class, are cut out of the other kinds.
    """
    by_kind: dict[Kind, list[BaseGeometry]] = {}
    holes, unknown = [], []
    for area in areas:
        name = meaning(area, tasks)
        kinds = _kinds_named(name, tasks)
        if not kinds and name in TUMOUR_CLASSES:
            kinds = [_kind_of_tumour(targets[0], tasks[0], name, slide_id)]
        if not kinds and name in EXCLUDED_CLASSES:
            holes.append(area.region)
        elif not kinds and name not in OTHER_CLASSES:
            unknown.append(area.region)
        for kind in kinds:
            by_kind.setdefault(kind, []).append(area.region)
    nothing = {kind.task: shapely.union_all(parts) for kind, parts in by_kind.items() if kind.shown is None}
    hole = shapely.union_all(holes)
    regions = {}
    for kind, parts in by_kind.items():
        cut = hole if kind.shown is None else shapely.union(hole, nothing.get(kind.task, hole))
        regions[kind] = shapely.difference(shapely.union_all(parts), cut)
    known = shapely.union_all([hole, *nothing.values(), *regions.values()])
    return regions, shapely.difference(shapely.union_all(unknown), known)


def meaning(area: Area, tasks: Sequence[Task]) -> str:
    """Return the name that decides what an area shows: of a class of the tasks, of tumour, or of what is left out."""
    own = {joined_names([name]) for task in tasks for name in task.classes}
    return class_of(area.classification, own | TUMOUR_CLASSES | OTHER_CLASSES)


def is_unknown(area: Area, tasks: Sequence[Task]) -> bool:
    """Return whether an area may show anything."""
    name = meaning(area, tasks)
    return not _kinds_named(name, tasks) and name not in TUMOUR_CLASSES | EXCLUDED_CLASSES | OTHER_CLASSES


def _kinds_named(group: str, tasks: Sequence[Task]) -> list[Kind]:
    """Return the classes that have the name of a group, in any case."""
    named = []
    for kind in kinds_of(tasks):
        classes = tasks[kind.task].classes
        shown = 0 if kind.shown is None and tasks[kind.task].kind == "single" else kind.shown
        if shown is not None and group and joined_names([classes[shown]]) == group:
            named.append(kind)
    return named


def _kind_of_tumour(target: Target, task: Task, group: str, slide_id: str) -> Kind:
    """Return the class of the first task that a tumour outline means: that of the slide, or the only one there is."""
    lesions = [kind.shown for kind in kinds_of([task]) if kind.shown is not None]
    shown = [target] if isinstance(target, int) else [c for c in lesions if target is not None and target[c]]
    fitting = [c for c in shown if c in lesions] or lesions
    if len(fitting) > 1 and not task.is_negative(target):
        names = ", ".join(task.classes[c] for c in fitting)
        raise AnnotationClassError(
            f"slide {slide_id}: its outlines are of class or group {group}, which may be any of {names}; name one of "
            "these in QuPath or ASAP, or empty its cell `annotation` of the manifest",
            slide_id=slide_id,
        )
    return Kind(0, fitting[0])
