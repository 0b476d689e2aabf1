"""The maps of a run as DICOM Parametric Maps, for slides that are DICOM."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_ips import __version__
from wsi_ips.errors import ManifestError, RecipeError, ScoresError, SlideError, UnsupportedSlideError
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.card import read_card
from wsi_ips.pipeline.maps.handoff import score_maps
from wsi_ips.pipeline.maps.heatmap import MapSource
from wsi_ips.pipeline.prediction.scored import checkpoint_folder, predicted, slide_scores
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import atomic_folder
from wsi_ips.results.handoff.maps import ScoreMaps
from wsi_ips.results.parametric_map import MapFacts, parametric_maps
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.slides.dicom_source import read_dicom_source
from wsi_ips.slides.source import is_url

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap

    from wsi_ips.slides.dicom_source import DicomSource


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes
    ----------
    written
        Files by slide_id.
    refused
        Why, by slide_id.
    notes
        What a slide's own file leaves out, by slide_id.
    """

    written: Mapping[str, Sequence[Path]]
    refused: Mapping[str, str]
    notes: Mapping[str, Sequence[str]]


def require_dicom() -> None:
    """Raise RecipeError where the libraries of the extra ``dicom`` are not installed."""
    missing = [name for name in ("highdicom", "pydicom") if importlib.util.find_spec(name) is None]
    if missing:
        raise RecipeError(f"DICOM maps need {' and '.join(missing)}; install them with pip install 'wsi-ips[dicom]'")


def to_export(run: Run, names: Sequence[str]) -> tuple[list[SlideRecord], dict[str, str]]:
    """Predicted slides to export, and why others that were named cannot be.

    Parameters
    ----------
    run
        The run.
    names
        slide_id's; none = all predicted ones.

    Raises
    ------
    ManifestError
        A name is in no row of the manifest.
    ScoresError
        Nothing is predicted.
    """
    known = {record.slide_id for record in run.records}
    strange = [name for name in names if name not in known]
    if strange:
        raise ManifestError(f"manifest {run.recipe.manifest}: no slide `{strange[0]}`")
    scored = predicted(run)
    chosen = [record for record in scored if not names or record.slide_id in names]
    ready = {record.slide_id for record in chosen}
    refused = {name: f"slide {name}: not predicted; run `wsi-ips predict` first" for name in names if name not in ready}
    if not chosen:
        raise ScoresError(f"run {run.folder.root}: none of the slides is predicted; run `wsi-ips predict` first")
    return chosen, refused


def export_dicom(run: Run, to: Path, names: Sequence[str] = ()) -> Exported:
    """Write ``<to>/<slide_id>/<map>_0.dcm`` and the coarser levels of every map of the recipe.

    Parameters
    ----------
    run
        With predictions.
    to
        Folder to write to; the folder of a slide is replaced.
    names
        slide_id's; none = all predicted ones.

    Raises
    ------
    RecipeError
        The extra ``dicom`` is not installed.
    ManifestError, ScoresError
        As :func:`to_export`.
    """
    require_dicom()
    chosen, refused = to_export(run, names)
    model_id = read_card(checkpoint_folder(run)).model_id
    written, notes = dict[str, Sequence[Path]](), dict[str, Sequence[str]]()
    with run.progress.stage("export as DICOM", len(chosen), "slides") as advance:
        for record in chosen:
            try:
                written[record.slide_id], notes[record.slide_id] = _export(run, record, to, model_id)
            except (SlideError, ScoresError) as error:
                refused[record.slide_id] = str(error)
            advance(1)
    return Exported(written, refused, notes)


def _export(run: Run, record: SlideRecord, to: Path, model_id: str) -> tuple[list[Path], Sequence[str]]:
    if is_url(record.path):
        raise UnsupportedSlideError(f"slide {record.slide_id}: behind a URL; copy its DICOM files to a disk")
    source, index = read_dicom_source(Path(record.path)), run.index(record)
    if source.size_px0 != index.size_px0:
        raise UnsupportedSlideError(
            f"slide {record.slide_id}: its finest instance has {source.size_px0.width} x {source.size_px0.height} px, "
            f"but {index.size_px0.width} x {index.size_px0.height} were tiled; tile the slide again"
        )
    scores = slide_scores(run, record)
    maps = score_maps(run.recipe, index, MapSource(record, scores, model_id, scores.fingerprint))
    found = slide_maps(maps, source)
    with atomic_folder(to / record.slide_id) as folder:
        for name, level in found.items():
            level.save_as(folder / name)
    return [to / record.slide_id / name for name in found], source.notes


def slide_maps(maps: ScoreMaps, source: DicomSource) -> dict[str, ParametricMap]:
    """Return every level of every map of a slide, by file name."""
    found: dict[str, ParametricMap] = {}
    for kind in maps.scores:
        meaning = SCORE_MAPS[kind].explanation.format(class_name=maps.class_name)
        facts = MapFacts(kind, meaning, maps.model_id, __version__, maps.fingerprint)
        levels = parametric_maps(maps.rasters[kind], source, facts)
        found |= {f"{kind}_{number}.dcm": level for number, level in enumerate(levels)}
    return found
