"""How much work a cohort is, from headers alone: tiles, bytes, hours, and what each figure rests on. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wsi_ips.geometry import Size, plan_read
from wsi_ips.slides import SlideInfo
from wsi_ips.tiles import tile_grid

BYTES_PER_PIXEL = 3
OPENSLIDE_FACTOR = 6.0
"""Time of OpenSlide over that of the direct path, tiles of 256 px (benchmarks/RESULTS.md: 3.8 to 8.8)."""
THREAD_EFFICIENCY = 0.8
"""Rate of two reading threads over twice that of one (benchmarks/RESULTS.md: 0.79 to 0.87)."""


@dataclass(frozen=True)
class Work:
    """What one pass over a slide's tiles is expected to be.

    Attributes
    ----------
    grid_tiles
        Tiles of the whole grid, tissue or not; exact.
    tiles
        Those expected to hold tissue.
    decoded_bytes
        Pixels of these tiles as they are decoded, 3 bytes each.
    read_bytes
        Their share of the file, by the share of all pixels of all levels.
    direct
        Whether the pixels are decoded without OpenSlide.
    """

    grid_tiles: int
    tiles: int
    decoded_bytes: int
    read_bytes: int
    direct: bool


@dataclass(frozen=True)
class Estimate:
    """One pass over a cohort.

    Attributes
    ----------
    slides
        Slides that are counted.
    grid_tiles, tiles
        Sums over them.
    decoded_gb, read_gb
        Sums, 10⁹ bytes.
    hours
        Reading and decoding all tiles once; what a network does with them comes on top.
    """

    slides: int
    grid_tiles: int
    tiles: int
    decoded_gb: float
    read_gb: float
    hours: float


def slide_work(
    info: SlideInfo, *, target_mpp: float, patch_px: int, stride_px: int, file_bytes: int, tissue_share: float
) -> Work:
    """Expected work of one slide.

    Parameters
    ----------
    info
        Header facts.
    target_mpp, patch_px, stride_px
        Scale, size and step of the tiles.
    file_bytes
        Size of the slide's file.
    tissue_share
        Share of the grid that is taken to be tissue.

    Raises
    ------
    ResolutionError
        The slide has no scale, or is coarser than the target.
    """
    plan = plan_read(info.pyramid, target_mpp=target_mpp, patch_size=Size(patch_px, patch_px))
    grid = len(tile_grid(info.bounds, plan, stride_px=stride_px))
    tiles = round(grid * tissue_share)
    # Overlapping tiles decode an area more than once; the file is read once, for neighbours come from the cache.
    decoded_px = tiles * plan.read_size.width * plan.read_size.height
    level = info.level_sizes[plan.level]
    covered_px = min(decoded_px, round(tissue_share * level.width * level.height))
    stored_px = sum(size.width * size.height for size in info.level_sizes)
    return Work(
        grid_tiles=grid,
        tiles=tiles,
        decoded_bytes=decoded_px * BYTES_PER_PIXEL,
        read_bytes=round(file_bytes * covered_px / stored_px),
        direct=info.pixels_by.startswith("direct"),
    )


def estimate(works: Iterable[Work], *, mpx_per_s: float, threads: int) -> Estimate:
    """Sum over slides.

    Parameters
    ----------
    works
        Of each slide.
    mpx_per_s
        Megapixels that one thread decodes in a second, as measured on this machine.
    threads
        Reading threads.
    """
    counted = list(works)
    seconds = sum(
        work.decoded_bytes / BYTES_PER_PIXEL / 1e6 / mpx_per_s * (1 if work.direct else OPENSLIDE_FACTOR)
        for work in counted
    )
    rate = 1 if threads == 1 else threads * THREAD_EFFICIENCY
    return Estimate(
        slides=len(counted),
        grid_tiles=sum(work.grid_tiles for work in counted),
        tiles=sum(work.tiles for work in counted),
        decoded_gb=sum(work.decoded_bytes for work in counted) / 1e9,
        read_gb=sum(work.read_bytes for work in counted) / 1e9,
        hours=seconds / rate / 3600,
    )
