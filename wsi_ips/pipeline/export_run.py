"""Tiles and maps of a run for other programs: CLAM and TRIDENT files, a QuPath project, DICOM Parametric Maps."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from wsi_ips import __version__
from wsi_ips.errors import (
    FeaturesError,
    ManifestError,
    RecipeError,
    ScoresError,
    SlideError,
    TileIndexError,
    UnsupportedSlideError,
)
from wsi_ips.geometry import Size
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import read_card
from wsi_ips.pipeline.heatmap_stage import MapSource, RunMaps, handoff_fingerprint, score_maps, tissue_region
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.read_cohort import slide_stem
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_predictions import RunPredictions
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.provenance import atomic_folder, atomic_write_text
from wsi_ips.results.handoff_package import Material, PackageContent
from wsi_ips.results.overlay import probability_text
from wsi_ips.results.parametric_map import MapFacts, parametric_maps
from wsi_ips.results.qupath_geojson import chosen_tiles, write_geojson
from wsi_ips.results.qupath_project import OBJECTS, PROJECT, QuPathImage, write_project
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.results.score_raster import ScoreMaps
from wsi_ips.slides import read_area
from wsi_ips.slides.dicom_source import read_dicom_source
from wsi_ips.slides.source import is_url
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.interop.tile_formats import TILE_FORMATS, write_foreign

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap

    from wsi_ips.pipeline.feature_source import FeaturePlan
    from wsi_ips.slides.dicom_source import DicomSource

THUMBNAIL_PX = 512


@dataclass
class Exported:
    """Result of an export to another program, by slide_id except for the tables."""

    written: dict[str, Sequence[Path]] = field(default_factory=dict)  # no file: the format has none without tiles
    refused: dict[str, str] = field(default_factory=dict)  # why a slide could not be written
    notes: dict[str, Sequence[str]] = field(default_factory=dict)  # what a slide's own file lacks
    tables: Sequence[Path] = ()


@dataclass(frozen=True)
class TileFiles:
    """Tile files of another tool to write."""

    kind: str  # a tile format
    folder: Path
    features: FeaturePlan | None = None  # features to write too


def export_tiles(
    slides: RunSlides, states: StateTable, files: TileFiles, names: Sequence[str], progress: Progress
) -> Exported:
    """Write the tiles of the named slides (none = all that are tiled) for another tool."""
    kind, to = files.kind, files.folder
    writable = [entry.name for entry in TILE_FORMATS.values() if entry.writes]
    if kind not in writable:
        raise RecipeError(f"--format {kind}: write one of {', '.join(writable)}")
    _require_known(slides, names)
    chosen = [r for r in slides.records if (r.slide_id in names if names else states[r.slide_id].state != "pending")]
    if not chosen:
        raise TileIndexError(f"run {states.folder.root}: no slide is tiled yet; run `wsi-ips tile` first")
    _require_different_files(chosen)
    write_features = _feature_writer(files.features, slides, to, kind) if files.features else None
    found = Exported()

    def write(record: SlideRecord) -> None:
        index = slides.index(record)
        path = write_foreign(to, index, kind=kind, name=slide_stem(record))
        if write_features:
            path = write_features(record, index)
        found.written[record.slide_id] = [path] if path else []

    _each_slide(chosen, write, found.refused, progress, f"export as {kind}")
    if kind == "clam":
        found.tables = _clam_tables(to, [r for r in chosen if r.slide_id in found.written and r.label is not None])
    return found


def export_dicom(maps: RunMaps, to: Path, names: Sequence[str] = ()) -> Exported:
    """Write ``<to>/<slide_id>/<map>_0.dcm`` and the coarser levels of every map of the recipe.

    Only the named slides; none = all that are predicted. The folder of a slide is replaced.
    """
    missing = [name for name in ("highdicom", "pydicom") if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"DICOM maps need {' and '.join(missing)}: pip install 'wsi-ips[dicom]'")
    found, model_id = Exported(), read_card(maps.predictions.checkpoint).model_id

    def write(record: SlideRecord) -> None:
        found.written[record.slide_id], found.notes[record.slide_id] = _write_dicom(maps, record, to, model_id)

    chosen = _predicted(maps.predictions, names, found.refused)
    _each_slide(chosen, write, found.refused, maps.predictions.progress, "export as DICOM")
    return found


def export_qupath(maps: RunMaps, to: Path, names: Sequence[str] = ()) -> Exported:
    """Write a QuPath project into a new folder: an image per slide, with lesions and tiles to load.

    Only the named slides; none = all that are predicted. What people drew in a project is never replaced.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RecipeError(
            f"--output {to}: the folder is not empty, and a QuPath project may hold what people have drawn; name a new "
            f"folder, or load the objects of a new export into the old project with scripts/ of the new one"
        )
    found, images, home = Exported(), list[QuPathImage](), to.absolute()
    chosen = _predicted(maps.predictions, names, found.refused)
    with tempfile.TemporaryDirectory() as aside:

        def write(record: SlideRecord) -> None:
            images.append(_qupath_image(maps, record, Path(aside)))

        _each_slide(chosen, write, found.refused, maps.predictions.progress, "QuPath project")
        if not images:
            raise ScoresError(f"no slide could be written: {'; '.join(found.refused.values())}")
        with atomic_folder(home) as folder:
            write_project(folder, images, home=home, created=datetime.now(UTC))
    found.written |= {image.slide_id: [home / PROJECT, home / OBJECTS / image.objects.name] for image in images}
    return found


def _require_known(slides: RunSlides, names: Sequence[str]) -> None:
    known = {record.slide_id for record in slides.records}
    if strange := [name for name in names if name not in known]:
        raise ManifestError(f"manifest {slides.manifest}: no slide `{strange[0]}`")


def _predicted(predictions: RunPredictions, names: Sequence[str], refused: dict[str, str]) -> list[SlideRecord]:
    """Return the named slides (none = all) that are predicted; the others go to ``refused``."""
    _require_known(predictions.slides, names)
    chosen = [record for record in predictions.predicted() if not names or record.slide_id in names]
    if not chosen:
        root = predictions.folder.root
        raise ScoresError(f"run {root}: none of the slides is predicted; run `wsi-ips predict` first")
    ready = {record.slide_id for record in chosen}
    refused |= {n: f"slide {n}: not predicted; run `wsi-ips predict` first" for n in names if n not in ready}
    return chosen


def _each_slide(
    chosen: Sequence[SlideRecord],
    write: Callable[[SlideRecord], None],
    refused: dict[str, str],
    progress: Progress,
    title: str,
) -> None:
    with progress.stage(title, len(chosen), "slides") as advance:
        for record in chosen:
            try:
                write(record)
            except (SlideError, ScoresError, TileIndexError, FeaturesError) as error:
                refused[record.slide_id] = str(error)
            advance(1)


def _require_different_files(chosen: Sequence[SlideRecord]) -> None:
    names: dict[str, str] = {}
    for record in chosen:
        other = names.setdefault(slide_stem(record), record.slide_id)
        if other != record.slide_id:
            raise ManifestError(
                f"slides {other} and {record.slide_id}: files with the same name in two folders, which other tools "
                "cannot tell apart; rename one, or export them one by one"
            )


def _feature_writer(
    plan: FeaturePlan, slides: RunSlides, to: Path, kind: str
) -> Callable[[SlideRecord, TileIndex], Path | None]:
    from wsi_ips.pipeline.feature_source import feature_source  # these need torch
    from wsi_ips.pipeline.features_stage import write_features_of

    source = feature_source(plan, slides)
    return lambda record, index: write_features_of(to, record, index, source, kind)


def _clam_tables(to: Path, labelled: Sequence[SlideRecord]) -> list[Path]:
    """Write CLAM's table of labels, and its split if there is one; slides are named by their files."""
    rows = [(r.patient_id or slide_stem(r), slide_stem(r), r.label) for r in labelled]
    tables = {"dataset.csv": pd.DataFrame(rows, columns=["case_id", "slide_id", "label"]).set_index("case_id")}
    splits = {name: [slide_stem(r) for r in labelled if r.split == name] for name in ("train", "val", "test")}
    if any(splits.values()):
        tables["splits_0.csv"] = pd.DataFrame(zip_longest(*splits.values()), columns=list(splits))
    for name, table in tables.items() if labelled else ():
        atomic_write_text(to / name, table.to_csv(lineterminator="\n"))
    return [to / name for name in tables] if labelled else []


def _write_dicom(maps: RunMaps, record: SlideRecord, to: Path, model_id: str) -> tuple[list[Path], Sequence[str]]:
    if is_url(record.path):
        raise UnsupportedSlideError(f"slide {record.slide_id}: behind a URL; copy its DICOM files to a disk")
    predictions = maps.predictions
    source, index = read_dicom_source(Path(record.path)), predictions.slides.index(record)
    if source.size_px0 != index.size_px0:
        raise UnsupportedSlideError(
            f"slide {record.slide_id}: its finest instance has {source.size_px0.width} x {source.size_px0.height} px, "
            f"but {index.size_px0.width} x {index.size_px0.height} were tiled; tile the slide again"
        )
    scores = predictions.scores(record, predictions.calibration())
    map_source = MapSource(record, scores, model_id, scores.fingerprint)
    found = _dicom_maps(score_maps(maps, index, map_source), source)
    with atomic_folder(to / record.slide_id) as folder:
        for name, level in found.items():
            level.save_as(folder / name)
    return [to / record.slide_id / name for name in found], source.notes


def _dicom_maps(maps: ScoreMaps, source: DicomSource) -> Mapping[str, ParametricMap]:
    """Return every level of every map of a slide, by file name."""
    found: dict[str, ParametricMap] = {}
    for kind in maps.scores:
        meaning = SCORE_MAPS[kind].explanation.format(class_name=maps.class_name)
        facts = MapFacts(kind, meaning, maps.model_id, __version__, maps.fingerprint)
        levels = parametric_maps(maps.rasters[kind], source, facts)
        found |= {f"{kind}_{number}.dcm": level for number, level in enumerate(levels)}
    return found


def _qupath_image(maps: RunMaps, record: SlideRecord, aside: Path) -> QuPathImage:
    if is_url(record.path):
        raise UnsupportedSlideError(f"slide {record.slide_id}: behind a URL, which QuPath's OpenSlide does not open")
    predictions = maps.predictions
    index, calibration = predictions.slides.index(record), predictions.calibration()
    scores, model_id = predictions.scores(record, calibration), read_card(predictions.checkpoint).model_id
    source = MapSource(record, scores, model_id, handoff_fingerprint(maps, scores, calibration))
    tissue = tissue_region(predictions.folder.tissue_outline(record.slide_id), index, predictions.progress.note)
    content = PackageContent.of(score_maps(maps, index, source), Material(tissue=tissue))
    objects = aside / f"{record.slide_id}.geojson.gz"
    every_tile = "geojson-all-tiles" in maps.handoff.formats
    write_geojson(objects, content, content.maps.best_first() if every_tile else chosen_tiles(content.maps))
    with predictions.slides.opener(record)() as reader:
        pixels, _ = read_area(reader, index.bounds, 1.0, THUMBNAIL_PX)
    thumbnail = BytesIO()
    Image.fromarray(pixels).save(thumbnail, "JPEG", quality=85)
    return QuPathImage(
        slide_id=record.slide_id,
        path=Path(record.path),
        reader=index.reader,
        size=Size(index.bounds.width, index.bounds.height),
        mpp=index.mpp,
        objects=objects,
        thumbnail=thumbnail.getvalue(),
        facts={
            f"{scores.classes[-1]} probability": probability_text(scores.probability[-1]),
            "lesions": str(len(content.lesions)),
            "model": model_id,
        },
    )
