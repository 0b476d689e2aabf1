"""A run: the recipe, its cohort, folder and states, and access to slides and tiles. Only the stages take it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self

from wsi_ips.config import LabelsSection, Recipe
from wsi_ips.errors import ManifestError, RecipeError, SlideError, SlideNotFoundError
from wsi_ips.labels import Target
from wsi_ips.manifest.discovery import discover
from wsi_ips.manifest.make_splits import with_validation_share
from wsi_ips.manifest.manifest_csv import Manifest, read_manifest
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.manifest.splits import Splits, require_no_leaks, with_splits
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.provenance import atomic_write_json, atomic_write_text, fingerprint, run_facts
from wsi_ips.slides import Remote, SlidePool, SlideReader, TileCache, content_identity, open_slide
from wsi_ips.slides.source import slide_name
from wsi_ips.tiles.index import SCHEMA_VERSION, TileIndex
from wsi_ips.tiles.interop.coordinate_import import CoordinateFiles, find_coordinates
from wsi_ips.tiles.store import read_header, read_index, stored_fingerprint
from wsi_ips.tiles.stream import SlideTiles

SHOWN = 5
NOT_HASHED = {"store", "location", "imported", "shared"}  # keys of section `tiles` that say where tiles are, not which


class Progress(Protocol):
    """Receives the progress of stages, and short messages: the command line draws bars."""

    def stage(self, title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Open a progress bar; the block gets a function to call with the number of units done since the last call."""

    def note(self, text: str) -> None:
        """Print one line."""


class Silent:
    """Ignores all progress."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Draw nothing."""
        yield lambda _: None

    def note(self, text: str) -> None:
        """Print nothing."""


@dataclass
class Run:
    """One recipe applied to one cohort; leaving its ``with`` block closes the slides."""

    recipe: Recipe
    records: Sequence[SlideRecord]  # rows of the manifest, in order
    targets: Mapping[str, tuple[Target, ...]]  # known labels by slide_id: an entry per task of ``recipe.labels``
    folder: RunFolder
    states: StateTable
    pool: SlidePool = field(default_factory=SlidePool)
    progress: Progress = field(default_factory=Silent)

    @classmethod
    def open(cls, recipe: Recipe, progress: Progress | None = None) -> Self:
        """Read the manifest, and the states of an earlier run in the same folder."""
        if recipe.output.exists() and not recipe.output.is_dir():
            raise RecipeError(f"key `output`: {recipe.output} is a file; give a folder")
        manifest = read_cohort(recipe)
        recipe = recipe.model_copy(update={"manifest": manifest.path})  # where the recipe names a folder of slides
        folder, records = RunFolder.of(recipe), tuple(manifest.records)
        states = StateTable.read(folder, [r.slide_id for r in records])
        targets = read_targets(manifest, recipe.labels)
        return cls(recipe, records, targets, folder, states, progress=progress or Silent())

    @classmethod
    def of_slide(cls, recipe: Recipe, record: SlideRecord) -> Self:
        """Return a run of one slide, for a worker process; it neither reads nor writes the states."""
        folder = RunFolder.of(recipe)
        return cls(recipe, (record,), {}, folder, StateTable(folder), SlidePool(max_open=1))

    def read_states(self) -> None:
        """Read the states again, after another process has changed them."""
        self.states = StateTable.read(self.folder, [r.slide_id for r in self.records])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def is_tiled(self, record: SlideRecord) -> bool:
        """Return whether the slide was tiled and its stored index is up to date; False where it cannot be read."""
        if not self.is_done(record):
            return False
        try:
            wanted = self.tiles_fingerprint(record)
        except (OSError, SlideError):
            return False
        return stored_fingerprint(self.folder.tiles, record.slide_id) == wanted

    def is_done(self, record: SlideRecord) -> bool:
        """Return whether the slide was tiled, with or without tiles; a later stage may have failed."""
        return self.states[record.slide_id].is_tiled

    def target(self, record: SlideRecord) -> Target:
        """Return the known label of the slide (the first task)."""
        return self.targets[record.slide_id][0]

    def named(self, names: Sequence[str]) -> list[SlideRecord]:
        """Return the slides of these slide_ids, in their order; refuse a name that is not in the manifest."""
        known = {record.slide_id: record for record in self.records}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ManifestError(
                f"manifest {self.recipe.manifest}: no slide_id {', '.join(unknown)}; check the spelling with "
                "`wsi-ips status`, or add a row"
            )
        return [known[name] for name in dict.fromkeys(names)]

    def with_tiles(self, records: Sequence[SlideRecord] | None = None) -> list[SlideRecord]:
        """Return the slides with tiles: state ``ok``, or failed in a later stage, which may try again."""
        chosen = self.records if records is None else records
        return [r for r in chosen if self.is_done(r) and self.states[r.slide_id].state != "empty"]

    @property
    def remote(self) -> Remote:
        """Timeout for slides behind a URL."""
        return Remote(self.recipe.compute.remote_timeout_s)

    def opener(self, record: SlideRecord) -> Callable[[], AbstractContextManager[SlideReader]]:
        """Return a function that opens the slide, for a ``with`` block."""
        reader, remote = self.recipe.slides.reader, self.remote

        def opened(cache: TileCache) -> SlideReader:
            return open_slide(record.path, reader=reader, mpp_override=record.mpp, cache=cache, remote=remote)

        return partial(self.pool.lease, record.slide_id, opened)

    def tiles_fingerprint(self, record: SlideRecord) -> str:
        """Return the fingerprint of an up-to-date tile index of the slide."""
        return fingerprint(
            "tiles",
            SCHEMA_VERSION,
            self.recipe.slides,
            self.recipe.tissue,
            self.recipe.tiles.model_dump(exclude=NOT_HASHED),
            record.mpp,
            content_identity(record.path, self.remote),
            _file_hash("annotation", record.annotation) if record.annotation else None,
            *([_file_hash("coordinates", record.coordinates)] if record.coordinates else []),
            record.tissue_method,
            record.tissue_min_saturation,
            _file_hash("tissue_mask", record.tissue_mask) if record.tissue_mask else None,
        )

    def index(self, record: SlideRecord) -> TileIndex:
        """Read the stored tile index of the slide."""
        return read_index(self.folder.tiles, record.slide_id)

    def header(self, record: SlideRecord) -> TileIndex:
        """Read the stored tile index without its tiles: facts of the slide, and the fingerprint."""
        return read_header(self.folder.tiles, record.slide_id)

    def tiles(self, record: SlideRecord) -> SlideTiles:
        """Return the tiles of the slide, to be streamed at slot 0."""
        return SlideTiles(
            slot=0, slide_id=record.slide_id, index=self.index(record), open=self.opener(record), tiles=None
        )


def _file_hash(column: str, path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        why = " (most tools write none for a slide without tiles: then leave the slide out)"
        raise SlideNotFoundError(
            f"{column} {path}: no such file; correct column `{column}` of the manifest"
            + (why if column == "coordinates" else "")
        ) from error


def read_cohort(recipe: Recipe) -> Manifest:
    """Read the recipe's manifest; splits come from `split.file` and tiles from `tiles.imported`, where given."""
    section = recipe.split
    leaks = ("patient", "content") if section.file else section.allow
    column, *further = recipe.labels.columns
    path = _discovered(recipe) if recipe.manifest.is_dir() else recipe.manifest
    manifest = read_manifest(path, label_column=column, further_columns=further, leaks=leaks)
    records = manifest.records
    if section.file is not None:
        records = with_splits(records, section.file, section.fold)
        require_no_leaks(records, {}, (), section.allow)  # patients; content is compared once slides are tiled
    if section.val_share and not any(r.split == "val" for r in records):
        labels = {r.slide_id: recipe.labels.mapped(r.label) for r in records}
        records = with_validation_share(records, labels, section.val_share, seed=recipe.seed)
    if (scale := recipe.slides.mpp_override) is not None:
        records = tuple(r.model_copy(update={"mpp": scale}) for r in records)
    if recipe.tiles.imported is not None:
        files = coordinate_files(recipe.tiles.imported, records)
        records = tuple(r if r.coordinates else _with_coordinates(r, files) for r in records)
    return replace(manifest, records=records)


def _discovered(recipe: Recipe) -> Path:
    """Write the manifest of a folder of slides into the run folder and return its path."""
    found = StringIO()
    discover(recipe.manifest).table.to_csv(found, index=False, lineterminator="\n")
    path = recipe.output / "manifest.csv"
    if not path.exists() or path.read_text(encoding="utf-8") != found.getvalue():
        atomic_write_text(path, found.getvalue())
    return path


def coordinate_files(folder: Path, records: Sequence[SlideRecord]) -> CoordinateFiles:
    """Find the coordinate files of a folder by slide."""
    files = find_coordinates(folder, names_of(records))
    for slide_id, found in files.by_slide.items():
        if len(found) > 1:
            shown = ", ".join(str(path.relative_to(files.folder)) for path in found[:SHOWN])
            raise RecipeError(f"key `tiles.imported`: {len(found)} files of slide {slide_id}: {shown}; keep one")
    return files


def _with_coordinates(record: SlideRecord, files: CoordinateFiles) -> SlideRecord:
    """Return a record with its coordinate file, or the expected path, so that tiling fails with a message."""
    expected = files.folder / f"{slide_stem(record)}.h5"
    found = next(iter(files.by_slide.get(record.slide_id, ())), expected)
    return record.model_copy(update={"coordinates": found})


def names_of(records: Sequence[SlideRecord]) -> dict[str, list[str]]:
    """Return the names that files of other tools may have, by slide_id: the slide_id, and a unique file name."""
    stems = Counter(slide_stem(record) for record in records)
    return {r.slide_id: [r.slide_id, *([slide_stem(r)] if stems[slide_stem(r)] == 1 else [])] for r in records}


def slide_stem(record: SlideRecord) -> str:
    """Return the slide's file name without its suffix, which other tools use as its name."""
    return PurePosixPath(slide_name(record.path)).stem


def read_targets(manifest: Manifest, labels: LabelsSection) -> dict[str, tuple[Target, ...]]:
    """Return the labels of each slide by slide_id, an entry per task; refuse labels that are not classes."""
    targets: dict[str, tuple[Target, ...]] = {record.slide_id: () for record in manifest.records}
    for number, (task, column) in enumerate(zip(labels.tasks, labels.columns, strict=True)):
        unknown: list[str] = []
        for record in manifest.records:
            name = record.slide_id
            text = manifest.further[name][number - 1] if number else labels.mapped(record.label)
            try:
                targets[name] += (task.parse(text),)
            except ValueError:
                unknown.append(f"{name}: `{text}`")
        if unknown:
            key = f"labels.further.{task.name}.classes" if number else "labels.classes"
            several = "; several classes of a slide are written `a;b`, none as `none`" if task.kind == "multi" else ""
            more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
            raise ManifestError(
                f"column `{column}`: labels that are not classes of the recipe ({', '.join(task.classes)}): "
                f"{', '.join(unknown[:SHOWN])}{more}; correct the manifest or list all classes in `{key}`{several}"
            )
    return targets


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
