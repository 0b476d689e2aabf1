"""Coordinate files of other tools: find those of each slide, read them, and turn them into tile indexes.

Whole numbers come as int64 or float64, and coordinates of old files as floats. Nothing in a file is executed, and
unknown attributes are ignored. A contradiction with the slide is an error and never adjusted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.annotations import tumour_fraction
from wsi_ips.errors import ResolutionError, TileIndexError, WsiIpsError
from wsi_ips.geometry import MPP_TOLERANCE, Pyramid, ReadPlan, Scale, Size
from wsi_ips.slides import SlideInfo
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules, index_at
from wsi_ips.tiles.interop.tile_formats import TILE_FORMATS, Attributes, ForeignTiles
from wsi_ips.tissue.mask import TissueMask

SUFFIXES = (".h5", ".hdf5")
TRIDENT_ENDING = "_patches"
# Relative; tools that state one downsample for both axes are off by a pixel of the level's size
DOWNSAMPLE_TOLERANCE = 1e-3
HALF_PX0 = 0.5  # most tools round a footprint to whole level-0 pixels
SLACK = 1e-6
FINEST_STEP = 8  # cells per tile of the raster for scores, where the tiles have no common grid
MPP_AT_1X = 10.0  # µm/px that a magnification of 1 stands for: 20x is 0.5 µm/px


def read_foreign(path: Path) -> ForeignTiles:
    """Read the tiles in an HDF5 file with dataset ``coords`` of a format in :data:`TILE_FORMATS`."""
    try:
        with h5py.File(path, "r") as file:
            if "coords" not in file or not isinstance(file["coords"], h5py.Dataset):
                raise TileIndexError(f"{path}: no dataset `coords` in it; give the tool's files of patch coordinates")
            if "feats" in file:
                raise TileIndexError(f"{path}: {STAMP_ADVICE}")
            dataset = file["coords"]
            coords = np.asarray(dataset[()])
            stated = {**dict(file.attrs), **dict(dataset.attrs)}
    except OSError as error:
        raise TileIndexError(f"{path}: cannot be read as HDF5 ({error})") from error
    columns = coords.shape[1] if coords.ndim == 2 else None
    # Later formats are more specific: AtlasPatch has TRIDENT's attributes and more columns.
    for entry in reversed(list(TILE_FORMATS.values())):
        if set(entry.marks) <= stated.keys() and entry.columns in (None, columns):
            found: ForeignTiles = entry.load()().read(Attributes(path, stated), coords)
            return found
    known = "; ".join(f"{entry.title} ({', '.join(entry.marks)})" for entry in TILE_FORMATS.values())
    raise TileIndexError(
        f"{path}: the coordinates state neither level nor size of a patch, so they cannot be placed. Known are "
        f"{known}; feature files of CLAM hold no geometry: give its folder `patches`"
    )


def states_tile_size(names: set[str]) -> bool:
    """Return whether one of these attributes states how large a tile is."""
    return any(entry.marks[0] in names for entry in TILE_FORMATS.values())


def require_on_slide(
    where: str,
    corners_px0: NDArray[np.int64],
    size_px0: Size,
    *,
    stated: Size | None,
    error: type[WsiIpsError] = TileIndexError,
) -> None:
    """Refuse tiles of a slide whose stated size is another one, or that begin outside the slide."""
    size = f"{size_px0.width} x {size_px0.height}"
    if stated is not None and stated != size_px0:
        raise error(
            f"{where}: the file says level 0 has {stated[0]} x {stated[1]} px, the slide has {size}; the tiles belong "
            "to another slide"
        )
    outside = (corners_px0 < 0).any(1) | (corners_px0 >= np.array(size_px0)).any(1)
    if outside.any():
        raise error(
            f"{where}: {outside.sum()} of {len(corners_px0)} tiles begin outside the slide of {size} px, e.g. at "
            f"{tuple(corners_px0[outside][0].tolist())}; the tiles belong to another slide"
        )


@dataclass(frozen=True)
class CoordinateFiles:
    """Files of a folder by slide."""

    folder: Path  # folder that was searched
    by_slide: Mapping[str, tuple[Path, ...]]  # files of each slide_id; several are for the caller to refuse
    unknown: tuple[Path, ...]  # files that belong to no slide of the manifest


def find_coordinates(folder: Path, names: Mapping[str, Sequence[str]]) -> CoordinateFiles:
    """Search a folder and its subfolders for the coordinate files of slides."""
    if not folder.exists():
        raise TileIndexError(f"{folder}: no such file or folder")
    root = folder if folder.is_dir() else folder.parent
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else [folder]
    if not files:
        raise TileIndexError(
            f"{folder}: no HDF5 file in it; give the folder with the coordinates of the tiles{zarr_advice(root)}"
        )
    found, unknown = by_owner(files, names)
    # A feature file repeats the coordinates it was made from.
    bare = {s: tuple(p for p in ps if len(ps) == 1 or not holds(p, "features")) for s, ps in found.items()}
    return CoordinateFiles(root, {s: bare[s] or tuple(ps) for s, ps in found.items()}, tuple(unknown))


def by_owner(files: Sequence[Path], names: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Return the files of each slide, and those of none: by their name, without TRIDENT's ending, or as stated inside.

    Coordinates and features are found by this rule.
    """
    owner = {name: slide_id for slide_id, known in names.items() for name in known}
    found: dict[str, list[Path]] = {}
    unknown = []
    for path in files:
        slide_id = owner.get(path.stem) or owner.get(path.stem.removesuffix(TRIDENT_ENDING)) or owner.get(_inner(path))
        if slide_id is None:
            unknown.append(path)
        else:
            found.setdefault(slide_id, []).append(path)
    return found, unknown


def zarr_advice(folder: Path) -> str:
    """Return a further sentence where a folder holds Zarr stores, as wsidata (LazySlide) writes them; else nothing."""
    if folder.suffix == ".zarr" or any(folder.glob("*.zarr")):
        return ". Zarr stores (wsidata, LazySlide) are not read: write their tiles as HDF5 with `coords` first"
    return ""


STAMP_ADVICE = "features of STAMP (`feats`, µm) are not read: their coordinates are not pixels of the slide"


def holds(path: Path, dataset: str) -> bool:
    """Return whether a file is HDF5 with a dataset (or group) of that name."""
    try:
        with h5py.File(path, "r") as file:
            return dataset in file
    except OSError:
        return False


def _inner(path: Path) -> str:
    """Return the slide's name as the file states it, empty where it states none or is damaged."""
    try:
        with h5py.File(path, "r") as file:
            value = file["coords"].attrs.get("name", "") if "coords" in file else ""
    except (OSError, KeyError, RuntimeError):  # not HDF5 (a `.pt` for example), or damaged
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def imported_index(
    foreign: ForeignTiles,
    info: SlideInfo,
    mask: TissueMask,
    rules: TileRules,
    origin: IndexOrigin,
    *,
    tumour_region: BaseGeometry | None = None,
) -> TileIndex:
    """Build the tile index of a slide whose tiles another tool has laid.

    All tiles are used except tiles that hang over the edge of the scanned area and repeated tiles, which
    ``tissue_method`` counts. No tile is left out for its tissue; ``tissue_fraction`` comes from the mask.
    """
    where = f"tiles of {foreign.format} for slide {info.name}"
    _check_slide(foreign, info, origin.slide_identity, where)
    plan = _plan(foreign, info.pyramid, rules.target_mpp, where)
    if plan.patch_size.width != rules.patch_px:
        raise TileIndexError(
            f"{where}: patches of {plan.patch_size.width} px, but the recipe asks for {rules.patch_px}; set "
            "`tiles.patch_px`"
        )
    if not np.allclose(plan.effective_mpp, rules.target_mpp, rtol=MPP_TOLERANCE, atol=0):
        raise TileIndexError(
            f"{where}: {plan.effective_mpp.x:.4g} µm/px, but the recipe asks for {rules.target_mpp:.4g} (5 % are "
            "allowed); set `tiles.mpp`, or lay the tiles again"
        )
    corners, notes = _place(foreign, info, plan, where)
    index = index_at(corners, plan, info, origin, stride_px=common_stride_px(corners, plan))
    boxes = index.boxes_px0
    said = [f"{len(corners)} of {len(foreign.corners_px0)} tiles of {foreign.format}"]
    return replace(
        index,
        tissue_fraction=mask.fraction(boxes),
        tumour_fraction=None if tumour_region is None else tumour_fraction(tumour_region, boxes),
        tissue_method="; ".join([*said, *notes, *_scale_notes(foreign, info.pyramid)]),
    )


def _check_slide(foreign: ForeignTiles, info: SlideInfo, slide_identity: str, where: str) -> None:
    if foreign.identity is not None and foreign.identity != slide_identity:
        raise TileIndexError(f"{where}: made from a file of other content; export or tile it again")
    require_on_slide(where, foreign.corners_px0, info.size_px0, stated=foreign.size_px0)
    if foreign.level is None:
        return
    if foreign.level and info.reader != "openslide":
        raise TileIndexError(
            f"{where}: level {foreign.level} is one of OpenSlide, but the slide is opened by {info.reader}, "
            "which counts other levels; import tiles of level 0"
        )
    if foreign.level >= len(info.level_sizes):
        raise TileIndexError(
            f"{where}: level {foreign.level}, but the slide has {len(info.level_sizes)} levels (from 0)"
        )
    level_size, downsample = info.level_sizes[foreign.level], info.downsample(foreign.level)
    if foreign.level_size is not None and foreign.level_size != level_size:
        stated, real = (" x ".join(map(str, size)) for size in (foreign.level_size, level_size))
        raise TileIndexError(
            f"{where}: the file says level {foreign.level} has {stated} px, the slide has {real}; the tiles belong to "
            "another slide"
        )
    if foreign.downsample is not None and not np.allclose(
        foreign.downsample, downsample, rtol=DOWNSAMPLE_TOLERANCE, atol=0
    ):
        raise TileIndexError(
            f"{where}: the file says level {foreign.level} is downsampled by {foreign.downsample.x:.6g} x "
            f"{foreign.downsample.y:.6g}, the slide by {downsample.x:.6g} x {downsample.y:.6g}"
        )


def _plan(foreign: ForeignTiles, pyramid: Pyramid, target_mpp: float, where: str) -> ReadPlan:
    patch_px = foreign.patch_px
    if patch_px is None:
        patch_px = _patch_from_spacing(foreign, pyramid.mpp, where)
    if foreign.magnification is not None:
        level0, target = foreign.magnification
        stated = patch_px * level0 / target
        if abs(stated - foreign.footprint_px0.x) > HALF_PX0 + DOWNSAMPLE_TOLERANCE * stated:
            raise TileIndexError(
                f"{where}: {patch_px} px at {target:g}x of a slide of {level0:g}x are {stated:g} level-0 px, "
                f"but the file says patch_size_level0 = {foreign.footprint_px0.x:g}"
            )
    if foreign.level is not None and foreign.read_px is not None:
        plan = _plan_at(pyramid, foreign.level, Size(foreign.read_px, foreign.read_px), patch_px, target_mpp)
        allowed = HALF_PX0 + DOWNSAMPLE_TOLERANCE * foreign.footprint_px0.x + pyramid.downsample(foreign.level).x / 2
        if abs(plan.footprint_px0.x - foreign.footprint_px0.x) > allowed:
            raise TileIndexError(
                f"{where}: {foreign.read_px} px of level {foreign.level} cover {plan.footprint_px0.x:g} "
                f"level-0 px, but the file says {foreign.footprint_px0.x:g}"
            )
    else:
        plan = plan_footprint(pyramid, foreign.footprint_px0, patch_px=patch_px, target_mpp=target_mpp)
    if plan.read_size.width < patch_px:
        raise ResolutionError(
            f"{where}: {plan.read_size.width} px of level {plan.level} would be enlarged to {patch_px} px, and "
            "pixels are never upsampled; lay the tiles at a coarser scale"
        )
    return plan


def plan_footprint(pyramid: Pyramid, footprint_px0: Scale, *, patch_px: int, target_mpp: float) -> ReadPlan:
    """Plan how a tile of a given size on level 0 is read: from the coarsest level on which it is whole pixels."""
    for level in reversed(range(len(pyramid.level_sizes))):
        downsample = pyramid.downsample(level)
        real = footprint_px0.over(downsample)
        size = Size(round(real.x), round(real.y))
        exact = all(abs(n - r) * d <= HALF_PX0 for n, r, d in zip(size, real, downsample, strict=True))
        if exact and min(size) >= patch_px:
            return _plan_at(pyramid, level, size, patch_px, target_mpp)
    # Up to 5 % smaller than the patch, it is read as the patch, as `plan_read` does.
    read = max(round(footprint_px0.x), patch_px if footprint_px0.x >= patch_px * (1 - MPP_TOLERANCE) else 1)
    return _plan_at(pyramid, 0, Size(read, read), patch_px, target_mpp)


def _plan_at(pyramid: Pyramid, level: int, read: Size, patch_px: int, target_mpp: float) -> ReadPlan:
    mpp = pyramid.level_mpp(level)
    effective = Scale(mpp.x * read.width / patch_px, mpp.y * read.height / patch_px)
    return ReadPlan(level, pyramid.downsample(level), read, Size(patch_px, patch_px), target_mpp, effective)


def _patch_from_spacing(foreign: ForeignTiles, mpp: Scale, where: str) -> int:
    """Compute the side of a patch from its size on level 0 and its µm/px; it must be a whole number."""
    spacing, mean = foreign.spacing_mpp or 0.0, (mpp.x + mpp.y) / 2
    patch_px = max(1, round(foreign.footprint_px0.x * mean / spacing))
    if abs(patch_px * spacing / mean - foreign.footprint_px0.x) > HALF_PX0 + DOWNSAMPLE_TOLERANCE * patch_px:
        raise TileIndexError(
            f"{where}: {foreign.footprint_px0.x:g} level-0 px at {mean:.4g} µm/px are not a whole number of pixels "
            f"of {spacing:g} µm; the tool used another scale for the slide: see column `mpp`"
        )
    return patch_px


def _place(foreign: ForeignTiles, info: SlideInfo, plan: ReadPlan, where: str) -> tuple[NDArray[np.int32], list[str]]:
    """Return corners ordered by y, then x, without tiles that hang over the edge, and notes on the others."""
    corners, bounds = foreign.corners_px0, info.bounds
    unique = np.unique(corners[:, ::-1], axis=0)[:, ::-1]
    # A tile of a coarse level may hang over by the rounding of that level's size.
    ends = np.array([bounds.right, bounds.bottom]) + HALF_PX0 * np.array(plan.downsample)
    inside = (unique >= bounds[:2]).all(1) & (unique + plan.footprint_px0 <= ends).all(1)
    notes = []
    if len(unique) < len(corners):
        notes.append(f"{len(corners) - len(unique)} listed twice")
    if not inside.all():
        notes.append(f"{(~inside).sum()} left out that hang over the edge of the scanned area")
    if len(corners) and not inside.any():
        raise TileIndexError(f"{where}: no tile lies wholly in the scanned area {tuple(bounds)}")
    return np.ascontiguousarray(unique[inside]).astype(np.int32), notes


def common_stride_px(corners: NDArray[np.int32], plan: ReadPlan) -> int:
    """Return the step in patch pixels of the coarsest grid that holds all tiles, an eighth of a patch without one."""
    per_px, patch = np.array(plan.px0_per_patch_px), plan.patch_size.width
    if len(corners) < 2:
        return patch
    relative = (corners - corners.min(0)) / per_px
    gaps = np.concatenate([np.diff(np.unique(np.rint(relative[:, axis]))) for axis in (0, 1)])
    for step in (int(gaps.min()), *(patch // k for k in (1, 2, 4))):
        if step > 0 and (np.abs(relative - np.rint(relative / step) * step) * per_px <= HALF_PX0 + SLACK).all():
            return step
    return max(1, patch // FINEST_STEP)


def _scale_notes(foreign: ForeignTiles, pyramid: Pyramid) -> list[str]:
    """Return a note where the scale of a magnification differs from the usual one."""
    if foreign.magnification is None or foreign.patch_px is None:
        return []
    target = foreign.magnification[1]
    mpp = foreign.footprint_px0.x * pyramid.mpp.x / foreign.patch_px
    off = mpp * target / MPP_AT_1X - 1
    if abs(off) <= MPP_TOLERANCE:
        return []
    return [f"{target:g}x is taken for {MPP_AT_1X / target:.4g} µm/px, here it is {mpp:.4g} ({off:+.0%})"]
