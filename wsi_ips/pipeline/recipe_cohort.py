"""Read the rows a recipe works on: the manifest, with the splits of a file and the coordinates of another tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path, PurePosixPath

from wsi_ips.config import Recipe
from wsi_ips.errors import RecipeError
from wsi_ips.manifest import Manifest, SlideRecord, discover, read_manifest
from wsi_ips.manifest.leakage import require_no_leaks
from wsi_ips.manifest.make_splits import with_validation_share
from wsi_ips.manifest.splits import with_splits
from wsi_ips.provenance import atomic_write_text
from wsi_ips.slides.source import slide_name
from wsi_ips.tiles.interop import CoordinateFiles, find_coordinates

SHOWN = 5


def read_cohort(recipe: Recipe) -> Manifest:
    """Read the recipe's manifest; splits come from `split.file` and tiles from `tiles.imported`, where given.

    Raises
    ------
    ManifestError
        Manifest or split file cannot be used, do not match, or a patient or file is in two splits.
    RecipeError
        There is no such fold, or the folder of coordinates cannot be used.
    """
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
    if recipe.tiles.imported is not None:
        records = with_coordinates(records, coordinate_files(recipe.tiles.imported, records))
    return replace(manifest, records=records)


def _discovered(recipe: Recipe) -> Path:
    """Write the manifest of a folder of slides into the run folder and return its path."""
    found = StringIO()
    discover(recipe.manifest).table.to_csv(found, index=False, lineterminator="\n")
    path = recipe.output / "manifest.csv"
    if not path.exists() or path.read_text(encoding="utf-8") != found.getvalue():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, found.getvalue())
    return path


def coordinate_files(folder: Path, records: Sequence[SlideRecord]) -> CoordinateFiles:
    """Find the coordinate files of a folder by slide.

    Raises
    ------
    RecipeError
        The folder cannot be used, or holds two files of one slide.
    """
    files = find_coordinates(folder, names_of(records))
    for slide_id, found in files.by_slide.items():
        if len(found) > 1:
            shown = ", ".join(str(path.relative_to(files.folder)) for path in found[:SHOWN])
            raise RecipeError(f"key `tiles.imported`: {len(found)} files of slide {slide_id}: {shown}; keep one")
    return files


def names_of(records: Sequence[SlideRecord]) -> dict[str, list[str]]:
    """Return the names that files of other tools may have, by slide_id: the slide_id, and a unique file name."""
    stems = Counter(slide_stem(record) for record in records)
    return {r.slide_id: [r.slide_id, *([slide_stem(r)] if stems[slide_stem(r)] == 1 else [])] for r in records}


def with_coordinates(records: Sequence[SlideRecord], files: CoordinateFiles) -> tuple[SlideRecord, ...]:
    """Return the records with the coordinate files of their slides; a record's own file wins.

    A slide without a file gets the path where one is expected, and fails when it is tiled.
    """
    expected = {r.slide_id: files.folder / f"{slide_stem(r)}.h5" for r in records}
    return tuple(
        r
        if r.coordinates
        else r.model_copy(update={"coordinates": next(iter(files.by_slide.get(r.slide_id, ())), expected[r.slide_id])})
        for r in records
    )


def slide_stem(record: SlideRecord) -> str:
    """Return the slide's file name without its ending, by which other tools know the slide."""
    return PurePosixPath(slide_name(record.path)).stem
