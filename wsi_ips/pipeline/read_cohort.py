"""Read the cohort of a recipe: its slides with their splits, imported tiles and labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from wsi_ips.config import LabelsSection, Recipe
from wsi_ips.errors import ManifestError, RecipeError, few
from wsi_ips.labels import Target
from wsi_ips.manifest.discovery import discover
from wsi_ips.manifest.make_splits import with_validation_share
from wsi_ips.manifest.manifest_csv import Manifest, read_manifest
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.manifest.splits import require_no_leaks, with_splits
from wsi_ips.provenance import atomic_write_text
from wsi_ips.slides.source import slide_name
from wsi_ips.tables import table_text
from wsi_ips.tiles.interop.coordinate_import import CoordinateFiles, find_coordinates


def read_cohort(recipe: Recipe) -> Manifest:
    """Read the recipe's manifest; splits come from `split.file` and tiles from `tiles.imported`, where given."""
    section = recipe.split
    leaks = ("patient", "content") if section.file else section.allow
    column, *further = recipe.labels.columns
    path = _discovered(recipe) if recipe.manifest.is_dir() else recipe.manifest
    manifest = read_manifest(path, label_column=column, further_columns=further, leaks=leaks)
    records = manifest.records
    spelled = {r.slide_id: recipe.labels.spelled(r.label) for r in records}
    records = tuple(r.model_copy(update={"label": spelled[r.slide_id]}) for r in records)
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
    found = discover(recipe.manifest).table
    text, path = table_text(list(found), found.itertuples(index=False)), recipe.output / "manifest.csv"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write_text(path, text)
    return path


def coordinate_files(folder: Path, records: Sequence[SlideRecord]) -> CoordinateFiles:
    """Find the coordinate files of a folder by slide."""
    files = find_coordinates(folder, names_of(records))
    for slide_id, found in files.by_slide.items():
        if len(found) > 1:
            shown = few([str(path.relative_to(files.folder)) for path in found])
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
            raise ManifestError(
                f"column `{column}`: labels that are not classes of the recipe ({', '.join(task.classes)}): "
                f"{few(unknown)}; correct the manifest or list all classes in `{key}`{several}"
            )
    return targets
