"""Tiles that come from other tools, and tiles that go to them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from wsi_ips.config import Recipe
from wsi_ips.errors import FeaturesError, ManifestError, RecipeError, TileIndexError
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.cohort import coordinate_files, slide_stem
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.stages import run_until
from wsi_ips.pipeline.states import SlideState
from wsi_ips.provenance import atomic_write_text
from wsi_ips.tiles import TileIndex
from wsi_ips.tiles.interop import write_foreign


@dataclass(frozen=True)
class Imported:
    """What an import came to.

    Attributes
    ----------
    states
        State of every slide.
    methods
        Of each slide with tiles: whose they are, how many, and what is to be said of them.
    unknown
        Coordinate files that belong to no slide of the manifest.
    """

    states: tuple[SlideState, ...]
    methods: Mapping[str, str]
    unknown: tuple[Path, ...]

    @property
    def failed(self) -> int:
        """Slides whose tiles were not taken."""
        return sum(state.state == "failed" for state in self.states)


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes
    ----------
    written
        File by slide_id; None where the format has no file for a slide without tiles.
    refused
        Why, by slide_id.
    tables
        Further files.
    """

    written: Mapping[str, Path | None]
    refused: Mapping[str, str]
    tables: tuple[Path, ...]


def import_stage(recipe: Recipe, progress: Progress | None = None) -> Imported:
    """Tile all slides with the coordinates in `tiles.imported`, and take the features in `features.imported` if given.

    Raises
    ------
    RecipeError
        The folder cannot be used.
    ManifestError
        The manifest cannot be used.
    """
    if recipe.tiles.imported is None:
        raise RecipeError("key `tiles.imported`: name the folder with the coordinate files")
    run = run_until(recipe, "features" if recipe.features.imported else "tile", progress)
    methods = {r.slide_id: run.header(r).tissue_method for r in run.with_tiles()}
    return Imported(tuple(run.states), methods, coordinate_files(recipe.tiles.imported, run.records).unknown)


def export_run(
    recipe: Recipe,
    kind: str,
    to: Path,
    slides: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    features: bool = False,
) -> Exported:
    """Write the tiles of a run for another tool, and on request their features.

    Parameters
    ----------
    recipe
        Of the run; its slides must have been tiled.
    kind
        Whose form.
    to
        Folder to write to.
    slides
        Only these; none = all.
    progress
        Who watches.
    features
        Write the stored features too.

    Raises
    ------
    ManifestError
        A slide is not in the manifest, or two slides' files have one name.
    TileIndexError
        Nothing is tiled yet.
    """
    watcher = progress or Silent()
    with Run.open(recipe, watcher) as run:
        chosen = _chosen(run, slides)
        write = _feature_writer(run, to, kind) if features else None
        written, refused = dict[str, Path | None](), dict[str, str]()
        with watcher.stage(f"export as {kind}", len(chosen), "slides") as advance:
            for record in chosen:
                try:
                    index = run.index(record)
                    path = write_foreign(to, index, kind=kind, name=slide_stem(record))
                    written[record.slide_id] = path if write is None else write(record, index)
                except (TileIndexError, FeaturesError) as error:
                    refused[record.slide_id] = str(error)
                advance(1)
    tables = _clam_tables(to, [r for r in chosen if r.slide_id in written]) if kind == "clam" else ()
    return Exported(written, refused, tuple(tables))


def _feature_writer(run: Run, to: Path, kind: str) -> Callable[[SlideRecord, TileIndex], Path | None]:
    """Writes the features of a slide; needs torch."""
    from wsi_ips.pipeline.learning.feature_source import feature_source
    from wsi_ips.pipeline.learning.features_stage import write_features_of

    source = feature_source(run)
    return lambda record, index: write_features_of(to, record, index, source, kind)


def _chosen(run: Run, slides: Sequence[str]) -> list[SlideRecord]:
    known = {r.slide_id for r in run.records}
    strange = [name for name in slides if name not in known]
    if strange:
        raise ManifestError(f"manifest {run.recipe.manifest}: no slide `{strange[0]}`")
    states = {s.slide_id: s.state for s in run.states}
    chosen = [r for r in run.records if (r.slide_id in slides if slides else states[r.slide_id] != "pending")]
    if not chosen:
        raise TileIndexError(f"run {run.folder.root}: no slide is tiled yet; run `wsi-ips tile` first")
    names: dict[str, str] = {}
    for record in chosen:
        other = names.setdefault(slide_stem(record), record.slide_id)
        if other != record.slide_id:
            raise ManifestError(
                f"slides {other} and {record.slide_id}: files of one name in two folders, which other tools "
                "cannot tell apart; rename one, or export them one by one"
            )
    return chosen


def _clam_tables(to: Path, records: Sequence[SlideRecord]) -> list[Path]:
    """CLAM's table of labels, and its split where there is one; slides are named by their files."""
    tables = []
    labelled = [r for r in records if r.label is not None]
    if labelled:
        rows = [[r.patient_id or slide_stem(r), slide_stem(r), str(r.label)] for r in labelled]
        tables.append(_write_csv(to / "dataset.csv", [["case_id", "slide_id", "label"], *rows]))
    parts = [[slide_stem(r) for r in labelled if r.split == part] for part in ("train", "val", "test")]
    if any(parts):
        longest = max(len(part) for part in parts)
        rows = [[str(i), *(part[i] if i < len(part) else "" for part in parts)] for i in range(longest)]
        tables.append(_write_csv(to / "splits_0.csv", [["", "train", "val", "test"], *rows]))
    return tables


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    atomic_write_text(path, text.getvalue())
    return path
