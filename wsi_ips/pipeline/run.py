"""A run: recipe, cohort, folder, states and access to tiles, composed for the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Self

from wsi_ips.config import LabelsSection, Recipe
from wsi_ips.errors import ManifestError, RecipeError
from wsi_ips.labels import Target, Task
from wsi_ips.manifest import Manifest, SlideRecord, Splits
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.recipe_cohort import read_cohort
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.pipeline.tile_access import TileAccess
from wsi_ips.provenance import atomic_write_json, run_facts
from wsi_ips.slides import Remote, SlidePool, SlideReader
from wsi_ips.tiles import SlideTiles, TileIndex

SHOWN = 5


@dataclass(frozen=True)
class Cohort:
    """Slides of a run and their labels."""

    records: tuple[SlideRecord, ...]  # rows of the manifest, in order
    targets: Mapping[str, tuple[Target, ...]]  # known labels by slide_id: an entry per task of ``recipe.labels``


@dataclass
class Run:
    """One recipe applied to one cohort. Only the stages take a run; they hand its parts on."""

    recipe: Recipe
    cohort: Cohort
    folder: RunFolder
    states: StateTable
    access: TileAccess
    progress: Progress = field(default_factory=Silent)

    @classmethod
    def open(cls, recipe: Recipe, progress: Progress | None = None) -> Run:
        """Read the manifest, and the states of an earlier run in the same folder.

        Raises
        ------
        ManifestError
            The manifest cannot be used.
        RecipeError
            The output path is not a folder.
        RunDatabaseError
            The states cannot be read.
        """
        if recipe.output.exists() and not recipe.output.is_dir():
            raise RecipeError(f"key `output`: {recipe.output} is a file; give a folder")
        manifest = read_cohort(recipe)
        recipe = recipe.model_copy(update={"manifest": manifest.path})  # where the recipe names a folder of slides
        cohort = Cohort(tuple(manifest.records), read_targets(manifest, recipe.labels))
        folder = RunFolder.of(recipe)
        states = StateTable.read(folder, [r.slide_id for r in cohort.records])
        access = TileAccess.of(recipe, SlidePool())
        return cls(recipe, cohort, folder, states, access, progress or Silent())

    @classmethod
    def of_slide(cls, recipe: Recipe, record: SlideRecord) -> Run:
        """Return a run of one slide, for a worker process; it neither reads nor writes the states."""
        folder = RunFolder.of(recipe)
        access = TileAccess.of(recipe, SlidePool(max_open=1))
        return cls(recipe, Cohort((record,), {}), folder, StateTable(folder), access)

    def read_states(self) -> None:
        """Read the states again, after another process has changed them."""
        self.states = StateTable.read(self.folder, [r.slide_id for r in self.records])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.pool.close()

    @property
    def records(self) -> Sequence[SlideRecord]:
        """Rows of the manifest, in order."""
        return self.cohort.records

    @property
    def targets(self) -> Mapping[str, tuple[Target, ...]]:
        """Known labels by slide_id: an entry per task."""
        return self.cohort.targets

    @property
    def pool(self) -> SlidePool:
        """Open slides; leaving a ``with`` block closes them."""
        return self.access.pool

    @property
    def remote(self) -> Remote:
        """Timeout and attempts for slides behind a URL."""
        return self.access.remote

    def opener(self, record: SlideRecord) -> Callable[[], AbstractContextManager[SlideReader]]:
        """Return a function that opens the slide, for a ``with`` block."""
        return self.access.opener(record)

    def tiles_fingerprint(self, record: SlideRecord) -> str:
        """Return the fingerprint of an up-to-date tile index of the slide."""
        return self.access.fingerprint(record)

    def is_tiled(self, record: SlideRecord) -> bool:
        """Return whether the slide was tiled and its stored tile index is up to date."""
        return self.is_done(record) and self.access.is_current(record)

    def is_done(self, record: SlideRecord) -> bool:
        """Return whether the slide was tiled, with or without tiles; a later stage may have failed."""
        return self.states[record.slide_id].is_tiled

    def target(self, record: SlideRecord) -> Target:
        """Return what is known of the slide's label, the first task."""
        return self.targets[record.slide_id][0]

    def with_tiles(self, records: Sequence[SlideRecord] | None = None) -> list[SlideRecord]:
        """Return the slides with tiles: state ``ok``, or failed in a later stage, which may try again."""
        chosen = self.records if records is None else records
        states = [(record, self.states[record.slide_id]) for record in chosen]
        return [r for r, s in states if s.state == "ok" or (s.state == "failed" and s.stage != "tile")]

    def index(self, record: SlideRecord) -> TileIndex:
        """Read the stored tile index of the slide."""
        return self.access.index(record)

    def header(self, record: SlideRecord) -> TileIndex:
        """Read the stored tile index without its tiles: facts of the slide, and the fingerprint."""
        return self.access.header(record)

    def tiles(self, record: SlideRecord) -> SlideTiles:
        """Return the tiles of the slide, to be streamed at slot 0."""
        return self.access.of_slide(record)


def read_targets(manifest: Manifest, labels: LabelsSection) -> dict[str, tuple[Target, ...]]:
    """Return the labels of each slide by slide_id, an entry per task.

    Raises
    ------
    ManifestError
        Labels that are no class of the recipe; names the slides and both remedies.
    """
    targets: dict[str, tuple[Target, ...]] = {}
    unknown: dict[str, list[str]] = {}
    for record in manifest.records:
        known: list[Target] = []
        cells = (labels.mapped(record.label), *manifest.further.get(record.slide_id, ()))
        for task, column, text in zip(labels.tasks, labels.columns, cells, strict=True):
            try:
                known.append(task.parse(text))
            except ValueError:
                unknown.setdefault(column, []).append(f"{record.slide_id}: `{text}`")
        targets[record.slide_id] = tuple(known)
    for task, column in zip(labels.tasks, labels.columns, strict=True):
        if column in unknown:
            raise _unknown_labels(task, column, unknown[column])
    return targets


def _unknown_labels(task: Task, column: str, cells: Sequence[str]) -> ManifestError:
    key = "labels.classes" if task.name == "label" else f"labels.further.{task.name}.classes"
    several = "; several classes of a slide are written `a;b`, none as `none`" if task.kind == "multi" else ""
    more = f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else ""
    return ManifestError(
        f"column `{column}`: labels that are no class of the recipe ({', '.join(task.classes)}): "
        f"{', '.join(cells[:SHOWN])}{more}; correct the manifest or list all classes in `{key}`{several}"
    )


def write_facts(run: Run) -> dict[str, Any]:
    """Write ``run.json``, which is enough to open the run's folder again, and return its content."""
    parts = Splits(({r.slide_id: r.split for r in run.records if r.split is not None},))
    facts = {
        "run": run_facts(),
        "recipe": run.recipe.model_dump(mode="json"),
        "parts": {"hash": parts.hash, **parts.counts(0)},
    }
    atomic_write_json(run.folder.facts, facts)
    return facts
