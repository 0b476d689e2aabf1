"""A run as a QuPath project: an image per predicted slide, with lesions and tiles to load."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from PIL import Image

from wsi_ips.errors import RecipeError, ScoresError, SlideError, UnsupportedSlideError
from wsi_ips.geometry import Size
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.card import read_card
from wsi_ips.pipeline.maps.export_dicom import Exported, to_export
from wsi_ips.pipeline.maps.handoff import handoff_fingerprint, score_maps
from wsi_ips.pipeline.maps.heatmap import MapSource, tissue_region
from wsi_ips.pipeline.prediction.scored import checkpoint_folder, model_calibration, slide_scores
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import atomic_folder
from wsi_ips.results.frame import probability_text
from wsi_ips.results.handoff.content import Material, PackageContent
from wsi_ips.results.handoff.qupath_geojson import chosen_tiles, write_geojson
from wsi_ips.results.qupath_project import OBJECTS, PROJECT, QuPathImage, write_project
from wsi_ips.slides import read_area
from wsi_ips.slides.source import is_url

THUMBNAIL_PX = 512


def export_qupath(run: Run, to: Path, names: Sequence[str] = ()) -> Exported:
    """Write a project into a new folder.

    Parameters
    ----------
    run
        With predictions.
    to
        Folder of the project; must not exist, or be empty: what somebody has drawn in a project is never replaced.
    names
        slide_id's; none = all predicted ones.

    Raises
    ------
    RecipeError
        There is something in the folder.
    ManifestError, ScoresError
        As :func:`wsi_ips.pipeline.maps.export_dicom.to_export`; also where no slide could be written.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RecipeError(
            f"--to {to}: there is something in it, and a QuPath project may hold what people have drawn; name a new "
            f"folder, or load the objects of a new export into the old project with scripts/ of the new one"
        )
    chosen, refused = to_export(run, names)
    model_id = read_card(checkpoint_folder(run)).model_id
    images = list[QuPathImage]()
    with tempfile.TemporaryDirectory() as aside, run.progress.stage("QuPath project", len(chosen), "slides") as advance:
        for record in chosen:
            try:
                images.append(_image(run, record, Path(aside), model_id))
            except (SlideError, ScoresError) as error:
                refused[record.slide_id] = str(error)
            advance(1)
        if not images:
            raise ScoresError(f"no slide could be written: {'; '.join(refused.values())}")
        home = to.absolute()
        with atomic_folder(home) as folder:
            write_project(folder, images, home=home, created=datetime.now(UTC))
    written = {image.slide_id: [home / PROJECT, home / OBJECTS / image.objects.name] for image in images}
    return Exported(written, refused, {})


def _image(run: Run, record: SlideRecord, aside: Path, model_id: str) -> QuPathImage:
    if is_url(record.path):
        raise UnsupportedSlideError(f"slide {record.slide_id}: behind a URL, which QuPath's OpenSlide does not open")
    index, calibration = run.index(record), model_calibration(run)
    scores = slide_scores(run, record, calibration)
    source = MapSource(record, scores, model_id, handoff_fingerprint(run.recipe, scores, calibration))
    tissue = tissue_region(run.folder.tissue_outline(record.slide_id), index, run.progress.note)
    content = PackageContent.of(score_maps(run.recipe, index, source), Material(tissue=tissue))
    objects = aside / f"{record.slide_id}.geojson.gz"
    every_tile = "geojson-all-tiles" in run.recipe.handoff.formats
    write_geojson(objects, content, content.maps.best_first() if every_tile else chosen_tiles(content.maps))
    with run.opener(record)() as reader:
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
