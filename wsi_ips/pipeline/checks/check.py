"""What each slide of a cohort is, before any work: headers, and as few pixels as show that it can be read.

Every slide ends in a row, whatever its file does; every file that is in no row is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from wsi_ips.config import Recipe, load_recipe
from wsi_ips.errors import ManifestError, ResolutionError, WsiIpsError
from wsi_ips.geometry import MPP_TOLERANCE, Point, Scale, Size
from wsi_ips.manifest import SlideRecord, discover, read_manifest
from wsi_ips.pipeline.checks.estimate import Work, slide_work
from wsi_ips.pipeline.checks.unknown import Unknown, unknown_files
from wsi_ips.pipeline.cohort import read_cohort
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.slides import Remote, SlideInfo, SlideReader, content_bytes, content_identity, open_slide
from wsi_ips.slides.opening import PATIENT, ReaderName
from wsi_ips.slides.scale import trusted_mpp
from wsi_ips.slides.source import slide_name

THREADS = 8
"""Headers wait for disks, not for cores."""
UNEQUAL_AXES = 0.01
CORNER_PX = 16
SERIES = "dicom.SeriesInstanceUID"


@dataclass(frozen=True)
class CheckSettings:
    """How slides would be read; decides nothing about which are readable.

    Attributes
    ----------
    reader
        As in the recipe.
    target_mpp, patch_px, stride_px
        Scale, size and step of the tiles.
    must_reach
        Whether a slide that is coarser than the target cannot be used.
    tissue_share
        Share of the grid that is expected to be tissue.
    remote
        How patient to be with slides behind a URL.
    """

    reader: ReaderName = "auto"
    target_mpp: float = 0.5
    patch_px: int = 256
    stride_px: int = 256
    must_reach: bool = False
    tissue_share: float = 0.3
    remote: Remote = PATIENT


@dataclass(frozen=True)
class CheckedSlide:
    """Header facts of one slide, or the reason why it cannot be used.

    Attributes
    ----------
    slide_id, path
        As in the manifest.
    reader
        Who opens it.
    pixels_by
        Who decodes its pixels, and why.
    size_px0, levels
        Size of level 0 and number of levels.
    mpp, mpp_source
        µm per level-0 pixel, and where it comes from.
    file_bytes
        Size of its file (for MRXS with the companion folder).
    identity
        Identity of its content; empty where the file cannot be read.
    series
        DICOM series it is of.
    work
        Tiles and bytes to be expected; None where nothing can be said.
    problem
        Why it cannot be used; empty where it can.
    remarks
        What is odd about it.
    """

    slide_id: str
    path: str = ""
    reader: str = ""
    pixels_by: str = ""
    size_px0: Size | None = None
    levels: int = 0
    mpp: Scale | None = None
    mpp_source: str = ""
    file_bytes: int = 0
    identity: str = ""
    series: str = ""
    work: Work | None = None
    problem: str = ""
    remarks: tuple[str, ...] = ()


class Target(NamedTuple):
    """What is to be checked.

    Attributes
    ----------
    records
        Rows.
    settings
        How they would be read.
    folders
        Where files may lie that are in no row.
    deep
        Whether to look into folders of these folders.
    own
        Files that belong to the cohort without being slides: manifest, recipe.
    """

    records: Sequence[SlideRecord]
    settings: CheckSettings
    folders: tuple[Path, ...]
    deep: bool
    own: frozenset[Path]


@dataclass(frozen=True)
class CheckReport:
    """A cohort before any work.

    Attributes
    ----------
    rows
        Every slide, in the order of the manifest.
    copies
        Groups of slides of one content, or of one DICOM series.
    unknown
        Files that are in no row.
    settings
        What the expected work rests on.
    """

    rows: tuple[CheckedSlide, ...]
    copies: tuple[tuple[str, ...], ...]
    unknown: Unknown
    settings: CheckSettings

    @property
    def unusable(self) -> int:
        """Slides that cannot be used."""
        return sum(bool(row.problem) for row in self.rows)


def find_target(path: Path, *, write_to: Path | None = None, folder: Path | None = None) -> Target:
    """Rows and settings of a manifest, of a recipe, or of the manifest that a folder amounts to.

    Parameters
    ----------
    path
        Manifest, recipe (.yaml, .yml) or folder.
    write_to
        Write the manifest of a folder to this file.
    folder
        Where to look for files that are in no row, and in the folders in it; else the folders of the slides.

    Raises
    ------
    ManifestError
        The manifest cannot be used, or the folder holds no slide.
    RecipeError
        The recipe cannot be used.
    """
    if write_to is not None and not path.is_dir():
        raise ManifestError(f"manifest {path}: --write is for folders; this is already a manifest")
    own, settings = {path.resolve()}, CheckSettings()
    records: Sequence[SlideRecord]
    if path.is_dir():
        table = discover(path).table
        if write_to is not None:
            table.to_csv(write_to, index=False, lineterminator="\n")
            own.add(write_to.resolve())
        records = [SlideRecord.model_validate(row) for row in table.to_dict("records")]
        folder = folder or path
    elif path.suffix.lower() in (".yaml", ".yml"):
        recipe = load_recipe(path)
        records, settings = read_cohort(recipe).records, _settings(recipe)
        own.add(recipe.manifest.resolve())
    else:
        records = read_manifest(path).records
    if folder is not None and not folder.is_dir():
        raise ManifestError(f"folder {folder}: no such folder")
    parents = {Path(r.path).resolve().parent for r in records if isinstance(r.path, Path)}
    folders = (folder,) if folder else tuple(sorted(parents))
    return Target(records, settings, folders, folder is not None, frozenset(own))


def check_cohort(target: Target, *, threads: int = THREADS, progress: Progress | None = None) -> CheckReport:
    """Open every slide, read its header, samples of its bytes and a corner of its coarsest level.

    Parameters
    ----------
    target
        Rows and settings.
    threads
        Slides opened at a time.
    progress
        Who watches.
    """
    rows = []
    with (
        (progress or Silent()).stage("headers", len(target.records), "slides") as advance,
        ThreadPoolExecutor(threads) as pool,
    ):
        for row in pool.map(lambda record: check_slide(record, target.settings), target.records):
            rows.append(row)
            advance(1)
    series = frozenset(row.series for row in rows if row.series)
    unknown = unknown_files(target.folders, target.records, deep=target.deep, own=target.own, series=series)
    return CheckReport(tuple(rows), tuple(_copies(rows)), unknown, target.settings)


def check_slide(record: SlideRecord, settings: CheckSettings) -> CheckedSlide:
    """Header facts of one slide; whatever goes wrong ends in its row."""
    row = CheckedSlide(record.slide_id, str(record.path))
    try:
        row = replace(row, file_bytes=content_bytes(record.path, settings.remote))
        row = replace(row, identity=content_identity(record.path, settings.remote))
        with open_slide(record.path, reader=settings.reader, mpp_override=record.mpp, remote=settings.remote) as reader:
            row = _with_header(row, reader.info, settings)
            info = reader.info
            _ = info.pyramid
            _read_corner(reader)
    except Exception as error:  # noqa: BLE001 - the fence around one slide: what a damaged file sets off cannot be listed
        text = str(error) if isinstance(error, WsiIpsError) else f"{type(error).__name__}: {error}"
        text = text.removeprefix(f"slide {slide_name(record.path)}: ")
        return replace(row, problem=" ".join(text.split()))
    remarks = _remarks(record, info)
    missing = [f"no file {path}" for path in (record.annotation, record.coordinates) if path and not path.exists()]
    return replace(row, remarks=(*row.remarks, *remarks), problem=row.problem or "; ".join(missing))


def _read_corner(reader: SlideReader) -> None:
    """Some files open and deliver nothing."""
    coarsest = len(reader.info.level_sizes) - 1
    size = reader.info.level_sizes[coarsest]
    reader.read_region(Point(0, 0), coarsest, Size(min(CORNER_PX, size.width), min(CORNER_PX, size.height)))


def _with_header(row: CheckedSlide, info: SlideInfo, settings: CheckSettings) -> CheckedSlide:
    work: Work | None = None
    problem, remarks = "", tuple[str, ...]()
    if info.mpp is not None:
        try:
            work = slide_work(
                info,
                target_mpp=settings.target_mpp,
                patch_px=settings.patch_px,
                stride_px=settings.stride_px,
                file_bytes=row.file_bytes,
                tissue_share=settings.tissue_share,
            )
        except ResolutionError as error:
            problem, remarks = (str(error), ()) if settings.must_reach else ("", (str(error).partition(":")[0],))
    return replace(
        row,
        reader=info.reader,
        pixels_by=info.pixels_by,
        size_px0=info.size_px0,
        levels=len(info.level_sizes),
        mpp=info.mpp,
        mpp_source="manifest" if info.mpp_source == "override" else info.mpp_source,
        series=info.properties.get(SERIES, ""),
        work=work,
        problem=problem,
        remarks=remarks,
    )


def _remarks(record: SlideRecord, info: SlideInfo) -> Iterable[str]:
    mpp = info.mpp
    if mpp is None:
        return
    if abs(mpp.x / mpp.y - 1) > UNEQUAL_AXES:
        yield f"scale differs between the axes: {mpp.x:.4g} and {mpp.y:.4g} µm/px"
    stated, _ = trusted_mpp(info.properties, prefix=info.reader)
    if record.mpp is not None and stated is not None and abs(stated.x / record.mpp.x - 1) > MPP_TOLERANCE:
        yield f"the manifest says {record.mpp.x:.4g} µm/px, the file {stated.x:.4g}"


def _copies(rows: Sequence[CheckedSlide]) -> Iterable[tuple[str, ...]]:
    """Slides of one content or one DICOM series; a file that is not read is a copy of none."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        key = row.series or row.identity
        if key:
            groups.setdefault(key, []).append(row.slide_id)
    return (tuple(names) for names in groups.values() if len(names) > 1)


def _settings(recipe: Recipe) -> CheckSettings:
    return CheckSettings(
        reader=recipe.slides.reader,
        target_mpp=recipe.tiles.mpp,
        patch_px=recipe.tiles.patch_px,
        stride_px=recipe.tiles.stride,
        must_reach=True,
        remote=Remote(recipe.compute.remote_timeout_s),
    )
