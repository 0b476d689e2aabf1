"""Tiles from other tools, and tiles of a run as CLAM and TRIDENT files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from wsi_ips.errors import FeaturesError, ManifestError, RecipeError, TileIndexError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run import Run, coordinate_files, slide_stem
from wsi_ips.provenance import atomic_write_text
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.interop.tile_formats import TILE_FORMATS, write_foreign


@dataclass(frozen=True)
class ImportedTiles:
    """Tool, tiles and remarks by slide_id, and coordinate files that belong to no slide of the manifest."""

    methods: Mapping[str, str]
    unknown: tuple[Path, ...]


@dataclass(frozen=True)
class ExportedTiles:
    """File (None: the format has none for a slide without tiles) or refusal by slide_id, and further tables."""

    written: Mapping[str, Path | None]
    refused: Mapping[str, str]
    tables: tuple[Path, ...]


def imported_tiles(run: Run) -> ImportedTiles:
    """Return what a run tiled with `tiles.imported` took from the folder of the other tool."""
    if run.recipe.tiles.imported is None:
        raise RecipeError("key `tiles.imported`: name the folder with the coordinate files")
    methods = {r.slide_id: run.header(r).tissue_method for r in run.with_tiles()}
    return ImportedTiles(methods, coordinate_files(run.recipe.tiles.imported, run.records).unknown)


def export_tiles(run: Run, kind: str, to: Path, slides: Sequence[str] = (), *, features: bool = False) -> ExportedTiles:
    """Write the tiles of a run for another tool, and on request their features.

    Only the named slides; none = all that are tiled.

    Raises
    ------
    RecipeError
        There is no such format.
    ManifestError
        A slide is not in the manifest, or two slides' files have one name.
    TileIndexError
        Nothing is tiled yet.
    """
    if not TILE_FORMATS[kind].writes:
        writable = ", ".join(entry.name for entry in TILE_FORMATS.values() if entry.writes)
        raise RecipeError(f"--format {kind}: write one of {writable}")
    chosen = _chosen(run, slides)
    write = _feature_writer(run, to, kind) if features else None
    written, refused = dict[str, Path | None](), dict[str, str]()
    with run.progress.stage(f"export as {kind}", len(chosen), "slides") as advance:
        for record in chosen:
            try:
                index = run.index(record)
                path = write_foreign(to, index, kind=kind, name=slide_stem(record))
                written[record.slide_id] = path if write is None else write(record, index)
            except (TileIndexError, FeaturesError) as error:
                refused[record.slide_id] = str(error)
            advance(1)
    tables = _clam_tables(to, [r for r in chosen if r.slide_id in written]) if kind == "clam" else ()
    return ExportedTiles(written, refused, tuple(tables))


def _feature_writer(run: Run, to: Path, kind: str) -> Callable[[SlideRecord, TileIndex], Path | None]:
    """Writes the features of a slide; needs torch."""
    from wsi_ips.pipeline.feature_source import feature_source
    from wsi_ips.pipeline.features_stage import write_features_of

    source = feature_source(run)
    return lambda record, index: write_features_of(to, record, index, source, kind)


def _chosen(run: Run, slides: Sequence[str]) -> list[SlideRecord]:
    known = {r.slide_id for r in run.records}
    strange = [name for name in slides if name not in known]
    if strange:
        raise ManifestError(f"manifest {run.recipe.manifest}: no slide `{strange[0]}`")
    chosen = [r for r in run.records if (r.slide_id in slides if slides else run.states[r.slide_id].state != "pending")]
    if not chosen:
        raise TileIndexError(f"run {run.folder.root}: no slide is tiled yet; run `wsi-ips tile` first")
    names: dict[str, str] = {}
    for record in chosen:
        other = names.setdefault(slide_stem(record), record.slide_id)
        if other != record.slide_id:
            raise ManifestError(
                f"slides {other} and {record.slide_id}: files with the same name in two folders, which other tools "
                "cannot tell apart; rename one, or export them one by one"
            )
    return chosen


def _clam_tables(to: Path, records: Sequence[SlideRecord]) -> list[Path]:
    """Write CLAM's table of labels, and its split if there is one; slides are named by their files."""
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
