"""What each slide of a manifest is, before any work: headers, and a tile where pixels are to be read directly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_ips.errors import ManifestError, SlideError
from wsi_ips.geometry import Scale, Size
from wsi_ips.manifest import SlideRecord, discover_slides, read_manifest
from wsi_ips.pipeline.progress import Progress
from wsi_ips.slides import open_slide


@dataclass(frozen=True)
class CheckedSlide:
    """Header facts of one slide, or the reason why it cannot be used."""

    slide_id: str
    pixels_by: str = ""
    size_px0: Size | None = None
    levels: int = 0
    mpp: Scale | None = None
    mpp_source: str = ""
    problem: str = ""


def records_of(path: Path, *, write_to: Path | None = None) -> Sequence[SlideRecord]:
    """Rows of a manifest file, or of the manifest that a folder amounts to.

    Parameters
    ----------
    path
        Manifest file or folder.
    write_to
        Write the manifest of a folder to this file.

    Raises
    ------
    ManifestError
        The manifest cannot be used, or the folder holds no slide.
    """
    if not path.is_dir():
        if write_to is not None:
            raise ManifestError(f"manifest {path}: --write is for folders; this is already a manifest")
        return read_manifest(path).records
    table = discover_slides(path)
    if write_to is not None:
        table.to_csv(write_to, index=False, lineterminator="\n")
    return [SlideRecord.model_validate(row) for row in table.to_dict("records")]


def check_slides(records: Sequence[SlideRecord], *, progress: Progress) -> list[CheckedSlide]:
    """Open every slide and read its header; of pixels, only the tile that is compared on opening."""
    rows = []
    with progress.stage("headers", len(records), "slides") as advance:
        for record in records:
            rows.append(_check(record))
            advance(1)
    return rows


def _check(record: SlideRecord) -> CheckedSlide:
    try:
        with open_slide(record.path, mpp_override=record.mpp) as reader:
            info = reader.info
    except SlideError as error:
        return CheckedSlide(record.slide_id, problem=str(error))
    problem = ""
    try:
        _ = info.pyramid
    except SlideError as error:
        problem = str(error)
    return CheckedSlide(
        record.slide_id,
        info.pixels_by,
        info.size_px0,
        len(info.level_sizes),
        info.mpp,
        info.mpp_source,
        problem,
    )
