"""Check the slides of a cohort before any work, from headers and a few pixels.

Every slide gets a row, whatever is wrong with its file; files that no row names are listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from wsi_ips.config import Recipe, TilesSection, load_recipe
from wsi_ips.errors import Failure, ManifestError, ResolutionError, fenced
from wsi_ips.geometry import MPP_TOLERANCE, Point, Size, plan_read
from wsi_ips.manifest.discovery import discover
from wsi_ips.manifest.folder_files import DICOM_SERIES, IMAGE_SUFFIXES, Unlisted, slide_suffixes, unlisted_files
from wsi_ips.manifest.manifest_csv import read_manifest
from wsi_ips.manifest.slide_record import SlideRecord, named_slide
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.read_cohort import read_cohort
from wsi_ips.provenance import atomic_write_text
from wsi_ips.slides import (
    PATIENT,
    Remote,
    SlideInfo,
    SlideReader,
    content_bytes,
    content_identity,
    open_slide,
    scale_remark,
    trusted_mpp,
)
from wsi_ips.slides.source import is_url, slide_name
from wsi_ips.tables import table_text
from wsi_ips.tiles.index import tile_grid

THREADS = 8  # slides opened in parallel: reading headers waits for disks, not for cores
RECIPE_SUFFIXES = (".yaml", ".yml")
UNEQUAL_AXES = 0.01
CORNER_PX = 16
TISSUE_SHARE = 0.3  # of the tile grid, for the number of tiles to expect


class Target(NamedTuple):
    """Slides to check, how to read them, and where to look for files in no row (see :func:`unlisted_files`)."""

    records: Sequence[SlideRecord]
    recipe: Recipe | None = None  # with a recipe, slides that are coarser than its target cannot be used
    folders: tuple[Path, ...] = ()
    deep: bool = False
    own: frozenset[Path] = frozenset()

    @property
    def tiles(self) -> TilesSection:
        """Tiling rules of the recipe, or the defaults."""
        return self.recipe.tiles if self.recipe else TilesSection()


@dataclass(frozen=True)
class CheckedSlide:
    """One slide, or the reason why it cannot be used."""

    slide_id: str
    path: str = ""
    info: SlideInfo | None = None  # without properties; None if the slide cannot be opened
    file_bytes: int = 0  # for MRXS including the folder
    content: str = ""  # identity of the content; empty if the file cannot be read
    series: str = ""  # DICOM series
    tiles: int | None = None  # to expect; None if the slide has no scale or is too coarse
    problem: str = ""  # why it cannot be used; empty if it can
    remarks: tuple[str, ...] = ()

    @property
    def mpp_source(self) -> str:
        """Source of the scale; empty if there is none."""
        if self.info is None or self.info.mpp is None:
            return ""
        return "manifest" if self.info.mpp_source == "override" else self.info.mpp_source

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        info = self.info
        return {
            "slide_id": self.slide_id,
            "path": self.path,
            "usable": not self.problem,
            "reader": info.reader if info else "",
            "pixels_by": info.pixels_by if info else "",
            "size_px0": info.size_px0 if info else None,
            "levels": len(info.level_sizes) if info else None,
            "mpp": info.mpp if info else None,
            "mpp_source": self.mpp_source,
            "file_bytes": self.file_bytes or None,
            "content": self.content,
            "expected_tiles": self.tiles,
            "problem": self.problem,
            "remarks": self.remarks,
        }


@dataclass(frozen=True)
class CheckReport:
    """Every slide in the order of the manifest, groups of copies (same content or DICOM series), and unlisted files."""

    rows: tuple[CheckedSlide, ...]
    copies: tuple[tuple[str, ...], ...]
    unlisted: Unlisted
    tiling: TilesSection

    @property
    def unusable(self) -> int:
        """Number of slides that cannot be used."""
        return sum(bool(row.problem) for row in self.rows)

    @property
    def scales(self) -> list[tuple[float, float, int]]:
        """Scales of the cohort, see :func:`scale_bins`."""
        return scale_bins([row.info.mpp.x for row in self.rows if row.info and row.info.mpp])

    @property
    def mpp_sources(self) -> Counter[str]:
        """Number of slides by the source of their scale."""
        return Counter(row.mpp_source for row in self.rows if row.mpp_source)

    @property
    def tiles(self) -> int:
        """Tiles to expect on the usable slides."""
        return sum(row.tiles for row in self.rows if row.tiles and not row.problem)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "slides": len(self.rows),
            "usable": len(self.rows) - self.unusable,
            "rows": [row.to_dict() for row in self.rows],
            "scales": [{"mpp_from": low, "mpp_to": high, "slides": count} for low, high, count in self.scales],
            "mpp_sources": dict(self.mpp_sources),
            "copies": self.copies,
            "unlisted_slides": [str(path) for path in self.unlisted.slides],
            "unlisted_files": [str(path) for path in self.unlisted.others],
            "expected": {
                "tiles": self.tiles,
                "tissue_share": TISSUE_SHARE,
                "target_mpp": self.tiling.mpp,
                "patch_px": self.tiling.patch_px,
            },
        }


def find_target(target: str, *, write_to: Path | None = None, folder: Path | None = None) -> Target:
    """Read the rows of a slide (file or URL), folder, manifest or recipe.

    ``write_to`` is the file for the manifest of a folder; ``folder`` is searched recursively for files that no row
    names, instead of the folders of the slides.
    """
    path = Path(target)
    if folder is not None and not folder.is_dir():
        raise ManifestError(f"folder {folder}: no such folder")
    if write_to is not None and not path.is_dir():
        raise ManifestError(f"{target}: --output writes the manifest of a folder; this is not a folder")
    if is_url(target) or (path.suffix.lower() in slide_suffixes() | IMAGE_SUFFIXES and not path.is_dir()):
        name = PurePosixPath(slide_name(target if is_url(target) else path)).stem
        return Target([named_slide(name, target)])
    own = {path.resolve()}
    if path.is_dir():
        table = discover(path).table
        if write_to is not None:
            atomic_write_text(write_to, table_text(list(table), table.itertuples(index=False)))
            own.add(write_to.resolve())
        records = [SlideRecord.model_validate(row) for row in table.to_dict("records")]
        return Target(records, folders=(folder or path,), deep=True, own=frozenset(own))
    if path.suffix.lower() in RECIPE_SUFFIXES:
        recipe = load_recipe(path)
        found = Target(read_cohort(recipe).records, recipe)
        own.add(recipe.manifest.resolve())
    else:
        found = Target(read_manifest(path).records)
    beside = tuple(sorted({Path(r.path).resolve().parent for r in found.records if isinstance(r.path, Path)}))
    return found._replace(folders=(folder,) if folder else beside, deep=folder is not None, own=frozenset(own))


def check_cohort(target: Target, progress: Progress | None = None) -> CheckReport:
    """Open every slide; read its header, samples of its bytes and a corner of its coarsest level."""
    rows = []
    with (
        (progress or Silent()).stage("headers", len(target.records), "slides") as advance,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for row in pool.map(lambda record: check_slide(record, target), target.records):
            rows.append(row)
            advance(1)
    series = frozenset(row.series for row in rows if row.series)
    unlisted = unlisted_files(target.folders, target.records, deep=target.deep, own=target.own, series=series)
    return CheckReport(tuple(rows), tuple(_copies(rows)), unlisted, target.tiles)


def check_slide(record: SlideRecord, target: Target) -> CheckedSlide:
    """Check one slide; any error becomes the problem in its row."""
    reader_name, remote = "auto", PATIENT
    if target.recipe:
        reader_name, remote = target.recipe.slides.reader, Remote(target.recipe.compute.remote_timeout_s)
    row = CheckedSlide(record.slide_id, str(record.path))

    def look() -> None:
        nonlocal row
        row = replace(row, file_bytes=content_bytes(record.path, remote))
        row = replace(row, content=content_identity(record.path, remote))
        with open_slide(record.path, reader=reader_name, mpp_override=record.mpp, remote=remote) as reader:
            row = _with_header(row, record, reader.info, target)
            _ = reader.info.pyramid  # raises if the slide has no scale
            _read_corner(reader)

    failure = fenced(look)
    if isinstance(failure, Failure):
        return replace(row, problem=failure.reason.removeprefix(f"slide {slide_name(record.path)}: "))
    missing = [f"no file {path}" for path in (record.annotation, record.coordinates) if path and not path.exists()]
    return replace(row, problem=row.problem or "; ".join(missing))


def scale_bins(mpps: Sequence[float]) -> list[tuple[float, float, int]]:
    """Group scales within 5 % of the smallest of a group, and return (smallest, largest, number) of each.

    >>> scale_bins([0.5, 0.25, 0.251, 0.2500001])
    [(0.25, 0.251, 3), (0.5, 0.5, 1)]
    """
    bins: list[list[float]] = []
    for mpp in sorted(mpps):
        if bins and mpp <= bins[-1][0] * (1 + MPP_TOLERANCE):
            bins[-1].append(mpp)
        else:
            bins.append([mpp])
    return [(group[0], group[-1], len(group)) for group in bins]


def expected_tiles(info: SlideInfo, tiling: TilesSection) -> int:
    """Estimate the tiles of a slide; raises ``ResolutionError`` if it has no scale, or is coarser than the target."""
    plan = plan_read(info.pyramid, target_mpp=tiling.mpp, patch_size=Size(tiling.patch_px, tiling.patch_px))
    return round(len(tile_grid(info.bounds, plan, stride_px=tiling.stride)) * TISSUE_SHARE)


def _read_corner(reader: SlideReader) -> None:
    """Fail if the file opens but yields no pixels."""
    coarsest, size = len(reader.info.level_sizes) - 1, reader.info.level_sizes[-1]
    reader.read_region(Point(0, 0), coarsest, Size(min(CORNER_PX, size.width), min(CORNER_PX, size.height)))


def _with_header(row: CheckedSlide, record: SlideRecord, info: SlideInfo, target: Target) -> CheckedSlide:
    series, remarks = info.properties.get(DICOM_SERIES, ""), tuple(_remarks(record, info))
    row = replace(row, info=replace(info, properties={}), series=series, remarks=remarks)
    if info.mpp is None:
        return row
    try:
        return replace(row, tiles=expected_tiles(info, target.tiles))
    except ResolutionError as error:
        if target.recipe:
            return replace(row, problem=str(error))
        return replace(row, remarks=(str(error).partition(":")[0], *row.remarks))


def _remarks(record: SlideRecord, info: SlideInfo) -> Iterable[str]:
    mpp = info.mpp
    if mpp is None:
        return
    if abs(mpp.x / mpp.y - 1) > UNEQUAL_AXES:
        yield f"scale differs between the axes: {mpp.x:.4g} and {mpp.y:.4g} µm/px"
    if remark := scale_remark(info):
        yield remark
    stated, _ = trusted_mpp(info.properties, prefix=info.reader, size=info.size_px0)
    if record.mpp is not None and stated is not None and abs(stated.x / record.mpp.x - 1) > MPP_TOLERANCE:
        yield f"the manifest says {record.mpp.x:.4g} µm/px, the file {stated.x:.4g}"


def _copies(rows: Sequence[CheckedSlide]) -> Iterable[tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for row in rows:
        if key := row.series or row.content:
            groups.setdefault(key, []).append(row.slide_id)
    return (tuple(names) for names in groups.values() if len(names) > 1)
