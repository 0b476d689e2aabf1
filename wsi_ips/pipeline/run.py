"""A run: recipe, manifest, states and fingerprints, opened once and shared by all stages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from wsi_ips.config import LabelsSection, Recipe
from wsi_ips.errors import ManifestError, RecipeError, SlideError, SlideNotFoundError
from wsi_ips.labels import Truth
from wsi_ips.manifest import Manifest, SlideRecord
from wsi_ips.pipeline.cohort import read_cohort
from wsi_ips.pipeline.folder import RunFolder
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.states import StateTable
from wsi_ips.provenance import fingerprint
from wsi_ips.slides import Remote, SlidePool, SlideReader, TileCache, content_identity, open_slide
from wsi_ips.tiles import SlideTiles, TileIndex, read_header, read_index
from wsi_ips.tiles import stored_fingerprint as stored_tiles_fingerprint
from wsi_ips.tiles.index import SCHEMA_VERSION as TILES_SCHEMA


@dataclass
class Run:
    """One recipe applied to one manifest.

    Attributes
    ----------
    recipe
        The whole recipe; stages take their section from it.
    records
        Rows of the manifest, in order.
    truths
        What the manifest says of each slide, by slide_id: an entry per task of ``recipe.labels``.
    folder
        Where everything goes.
    states
        State of every slide.
    progress
        Who watches.
    pool
        Slides that are open; leaving a ``with`` block closes them.
    """

    recipe: Recipe
    records: Sequence[SlideRecord]
    truths: Mapping[str, tuple[Truth, ...]]
    folder: RunFolder
    states: StateTable
    progress: Progress = field(default_factory=Silent)
    pool: SlidePool = field(default_factory=SlidePool)

    @classmethod
    def open(cls, recipe: Recipe, progress: Progress | None = None) -> Run:
        """Read the manifest and the states of an earlier run in the same folder.

        Raises
        ------
        ManifestError
            The manifest cannot be used.
        RecipeError
            The output path is not a folder.
        """
        if recipe.output.exists() and not recipe.output.is_dir():
            raise RecipeError(f"key `output`: {recipe.output} is a file; give a folder")
        manifest = read_cohort(recipe)
        recipe = recipe.model_copy(update={"manifest": manifest.path})  # of a folder: what was found in it
        truths = read_truths(manifest, recipe.labels)
        folder = RunFolder.of(recipe)
        shared = RunFolder(recipe.tiles.shared).states if recipe.tiles.shared else None
        names = [r.slide_id for r in manifest.records]
        states = StateTable.read(folder.states, folder.traceback, names, tiled_in=shared)
        pool = SlidePool()
        return cls(recipe, manifest.records, truths, folder, states, progress or Silent(), pool)

    @classmethod
    def of_slide(cls, recipe: Recipe, record: SlideRecord) -> Run:
        """One slide alone, for a process that works on it; the table of states is not read and never written."""
        folder = RunFolder.of(recipe)
        pool = SlidePool(max_open=1)
        states = StateTable(folder.states, folder.traceback)
        return cls(recipe, (record,), {}, folder, states, pool=pool)

    def read_states(self) -> None:
        """Take over the table of states as it is stored."""
        self.states = StateTable.read(self.folder.states, self.folder.traceback, [r.slide_id for r in self.records])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.pool.close()

    @property
    def remote(self) -> Remote:
        """How patient to be with slides behind a URL."""
        return Remote(self.recipe.compute.remote_timeout_s)

    def opener(self, record: SlideRecord) -> Callable[[], AbstractContextManager[SlideReader]]:
        """A function that gives an open slide, opened as the recipe says, for a ``with`` block."""

        def opened(cache: TileCache) -> SlideReader:
            return open_slide(
                record.path,
                reader=self.recipe.slides.reader,
                mpp_override=record.mpp,
                cache=cache,
                remote=self.remote,
            )

        return partial(self.pool.lease, record.slide_id, opened)

    def tiles_fingerprint(self, record: SlideRecord) -> str:
        """Fingerprint that the slide's tile index must have to be up to date.

        Raises
        ------
        SlideNotFoundError
            There is no file at the slide's path, or at its annotation's or tissue mask's.
        """
        recipe = self.recipe
        return fingerprint(
            "tiles",
            TILES_SCHEMA,
            recipe.slides,
            recipe.tissue,
            recipe.tiles.model_dump(exclude={"store", "location", "imported", "shared"}),
            record.mpp,
            content_identity(record.path, self.remote),
            _file_hash("annotation", record.annotation) if record.annotation else None,
            *([_file_hash("coordinates", record.coordinates)] if record.coordinates else []),
            record.tissue_method,
            record.tissue_min_saturation,
            _file_hash("tissue_mask", record.tissue_mask) if record.tissue_mask else None,
        )

    def is_tiled(self, record: SlideRecord) -> bool:
        """Whether the slide's stored tile index is up to date."""
        if not self.is_done(record):
            return False
        try:
            wanted = self.tiles_fingerprint(record)
        except (OSError, SlideError):
            return False
        return stored_tiles_fingerprint(self.folder.tiles, record.slide_id) == wanted

    def is_done(self, record: SlideRecord) -> bool:
        """Whether the slide was tiled, with tiles or without; it may have failed later."""
        return self.states[record.slide_id].is_tiled

    def truth(self, record: SlideRecord) -> Truth:
        """What is known of the slide's label, the first task."""
        return self.truths[record.slide_id][0]

    def with_tiles(self, records: Sequence[SlideRecord] | None = None) -> list[SlideRecord]:
        """Slides that have tiles: state ``ok``, or failed in a later stage that may be tried again."""
        chosen = self.records if records is None else records
        states = [(record, self.states[record.slide_id]) for record in chosen]
        return [r for r, s in states if s.state == "ok" or (s.state == "failed" and s.stage != "tile")]

    def index(self, record: SlideRecord) -> TileIndex:
        """The slide's stored tile index."""
        return read_index(self.folder.tiles, record.slide_id)

    def header(self, record: SlideRecord) -> TileIndex:
        """The slide's stored tile index without its tiles: what it says of the slide, and its fingerprint."""
        return read_header(self.folder.tiles, record.slide_id)

    def tiles(self, record: SlideRecord) -> SlideTiles:
        """The slide's tiles, ready to stream at slot 0."""
        return SlideTiles(
            slot=0,
            slide_id=record.slide_id,
            index=self.index(record),
            open=self.opener(record),
            tiles=None,
        )


def read_truths(manifest: Manifest, labels: LabelsSection) -> dict[str, tuple[Truth, ...]]:
    """What the manifest says of each slide, an entry per task, by slide_id.

    Raises
    ------
    ManifestError
        Labels that are no class of the recipe; names the slides and the two ways out.
    """
    truths: dict[str, tuple[Truth, ...]] = {}
    odd: dict[str, list[str]] = {}
    for record in manifest.records:
        known: list[Truth] = []
        cells = (labels.meaning(record.label), *manifest.further.get(record.slide_id, ()))
        for task, column, text in zip(labels.tasks, labels.columns, cells, strict=True):
            try:
                known.append(task.truth(text))
            except ValueError:
                odd.setdefault(column, []).append(f"{record.slide_id}: `{text}`")
        truths[record.slide_id] = tuple(known)
    for (task, column), shown in ((pair, odd.get(pair[1])) for pair in zip(labels.tasks, labels.columns, strict=True)):
        if shown:
            key = "labels.classes" if task.name == "label" else f"labels.further.{task.name}.classes"
            several = "; several classes of a slide are written `a;b`, none as `none`" if task.kind == "multi" else ""
            more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
            raise ManifestError(
                f"column `{column}`: labels that are no class of the recipe ({', '.join(task.classes)}): "
                f"{', '.join(shown[:5])}{more}; correct the manifest or list all classes in `{key}`{several}"
            )
    return truths


def _file_hash(column: str, path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        why = " (most tools write none for a slide without tiles: then leave the slide out)"
        raise SlideNotFoundError(
            f"{column} {path}: no such file; correct column `{column}` of the manifest"
            + (why if column == "coordinates" else "")
        ) from error
