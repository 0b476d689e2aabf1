"""The rows a recipe works on: the manifest, with the parts of a split file and the coordinates of another tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path, PurePosixPath

from wsi_ips.config import Recipe
from wsi_ips.errors import ManifestError, RecipeError
from wsi_ips.manifest import Manifest, SlideRecord, Splits, discover, read_manifest, read_splits
from wsi_ips.manifest.splits import Member, validation_share
from wsi_ips.provenance import atomic_write_text
from wsi_ips.slides.source import slide_name
from wsi_ips.tiles.interop import CoordinateFiles, find_coordinates

SHOWN = 5


def read_cohort(recipe: Recipe) -> Manifest:
    """The recipe's manifest; parts are those of `split.file`, tiles those of `tiles.imported`, where given.

    Raises
    ------
    ManifestError
        Manifest or split file cannot be used, do not fit each other, or a patient or file is in two parts.
    RecipeError
        There is no such fold, or the folder of coordinates cannot be used.
    """
    section = recipe.split
    leaks = ("patient", "content") if section.file else section.allow
    column, *further = recipe.labels.columns
    path = _found(recipe) if recipe.manifest.is_dir() else recipe.manifest
    manifest = read_manifest(path, label_column=column, further_columns=further, leaks=leaks)
    records = manifest.records
    if section.file is not None:
        splits = read_splits(section.file)
        if section.fold >= len(splits.folds):
            raise RecipeError(
                f"key `split.fold`: {section.fold}, but {section.file} holds {len(splits.folds)} (from 0)"
            )
        records = with_parts(records, splits, section.fold, section.file)
        if "patient" not in section.allow:
            _require_whole_patients(records, section.file)
    if section.val_share and not any(r.split == "val" for r in records):
        records = _with_validation(records, recipe)
    if recipe.tiles.imported is not None:
        records = with_coordinates(records, coordinate_files(recipe.tiles.imported, records))
    return replace(manifest, records=records)


def _found(recipe: Recipe) -> Path:
    """The manifest of a folder of slides, written into the run folder for people to read."""
    found = StringIO()
    discover(recipe.manifest).table.to_csv(found, index=False, lineterminator="\n")
    path = recipe.output / "manifest.csv"
    if not path.exists() or path.read_text(encoding="utf-8") != found.getvalue():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, found.getvalue())
    return path


def _with_validation(records: Sequence[SlideRecord], recipe: Recipe) -> tuple[SlideRecord, ...]:
    """Rows of which a share that would be learned from validates."""
    labels = {r.slide_id: recipe.labels.meaning(r.label) for r in records if r.split == "train"}
    members = [
        Member(r.slide_id, r.patient_id or r.slide_id, labels[r.slide_id] or "")
        for r in records
        if r.slide_id in labels
    ]
    members = [m for m in members if m.stratum]
    chosen = validation_share(members, recipe.split.val_share, seed=recipe.seed)
    return tuple(r.model_copy(update={"split": "val"}) if r.slide_id in chosen else r for r in records)


def with_parts(
    records: Sequence[SlideRecord], splits: Splits, fold: int, path: Path | str = "splits"
) -> tuple[SlideRecord, ...]:
    """Rows with the parts of a fold; a slide that is in none has no split and is only predicted.

    Raises
    ------
    ManifestError
        The splits name slides that are not in the manifest.
    """
    parts = splits.folds[fold]
    missing = sorted(parts.keys() - {r.slide_id for r in records})
    if missing:
        raise ManifestError(
            f"splits {path}: {len(missing)} slides that are in no row of the manifest: "
            f"{', '.join(missing[:SHOWN])}; make the splits again from this manifest"
        )
    return tuple(r.model_copy(update={"split": parts.get(r.slide_id)}) for r in records)


def coordinate_files(folder: Path, records: Sequence[SlideRecord]) -> CoordinateFiles:
    """Coordinate files of a folder by slide.

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
    """Names that other tools' files of a slide may have, by slide_id: the slide_id, and a file name that is unique."""
    stems = Counter(slide_stem(record) for record in records)
    return {r.slide_id: [r.slide_id, *([slide_stem(r)] if stems[slide_stem(r)] == 1 else [])] for r in records}


def with_coordinates(records: Sequence[SlideRecord], files: CoordinateFiles) -> tuple[SlideRecord, ...]:
    """Rows with the files of their tiles; a row's own `coordinates` win.

    A slide without a file fails when it is tiled.
    """
    return tuple(
        r
        if r.coordinates
        else r.model_copy(update={"coordinates": next(iter(files.by_slide.get(r.slide_id, ())), _absent(files, r))})
        for r in records
    )


def slide_stem(record: SlideRecord) -> str:
    """The slide's file name without its ending, by which other tools know the slide."""
    return PurePosixPath(slide_name(record.path)).stem


def _absent(files: CoordinateFiles, record: SlideRecord) -> Path:
    return files.folder / f"{slide_stem(record)}.h5"


def _require_whole_patients(records: Sequence[SlideRecord], path: Path) -> None:
    first: dict[str, SlideRecord] = {}
    for record in records:
        if record.patient_id is None or record.split is None:
            continue
        other = first.setdefault(record.patient_id, record)
        if other.split != record.split:
            raise ManifestError(
                f"splits {path}: patient `{record.patient_id}` is in {other.split} ({other.slide_id}) and in "
                f"{record.split} ({record.slide_id}); make the splits again, or allow it: `split.allow: [patient]`"
            )
