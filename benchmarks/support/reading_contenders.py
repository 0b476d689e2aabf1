"""What is compared by ``reading.py``: our reader, OpenSlide, a bare decoder, and other libraries where installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import simplejpeg
import tiffslide
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.geometry import Point, Pyramid, ReadPlan, Scale, Size, plan_read
from wsi_ips.slides import open_slide, read_patch
from wsi_ips.slides.jpeg_tiles import find_jpeg_tiles
from wsi_ips.slides.source import LocalFile

MPP = 0.25
Corners = NDArray[np.int32]
Contender = Callable[[Corners], None]
"""Reads patches at level-0 corners, shape (n, 2)."""


def plan_of(path: Path, patch: int, mpp: float = MPP) -> ReadPlan:
    """Read plan of a slide of one level."""
    with open_slide(path, mpp_override=MPP) as reader:
        return plan_read(
            Pyramid(reader.info.level_sizes, Scale(MPP, MPP)), target_mpp=mpp, patch_size=Size(patch, patch)
        )


def grid(path: Path, plan: ReadPlan, offset: int = 0) -> Corners:
    """Row-major corners of a full grid."""
    with open_slide(path, mpp_override=MPP) as reader:
        width, height = reader.info.size_px0
    step = plan.read_size.width
    xs, ys = (np.arange(offset, side - step + 1, step) for side in (width, height))
    return np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.int32)


def ours(path: Path, plan: ReadPlan, reader_name: str = "auto") -> Contender:
    """Our reader."""
    reader = open_slide(path, reader=reader_name, mpp_override=MPP)  # type: ignore[arg-type]
    out = np.empty((plan.patch_size.height, plan.patch_size.width, 3), np.uint8)

    def read(corners: Corners) -> None:
        for x, y in corners:
            read_patch(reader, Point(int(x), int(y)), plan, out)

    return read


def _resized(pixels: NDArray[np.uint8], plan: ReadPlan) -> NDArray[np.uint8]:
    if not plan.resamples:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(tuple(plan.patch_size), Image.Resampling.BOX))


def with_openslide(path: Path, plan: ReadPlan) -> Contender:
    """``read_region`` and ``convert("RGB")``, as most pipelines do."""
    slide = openslide.OpenSlide(path)

    def read(corners: Corners) -> None:
        for x, y in corners:
            image = slide.read_region((int(x), int(y)), 0, tuple(plan.read_size)).convert("RGB")
            if plan.resamples:
                image = image.resize(tuple(plan.patch_size), Image.Resampling.BOX)
            np.asarray(image)

    return read


def with_tiffslide(path: Path, plan: ReadPlan) -> Contender:
    """TiffSlide, as an array."""
    slide = tiffslide.TiffSlide(path)

    def read(corners: Corners) -> None:
        for x, y in corners:
            _resized(slide.read_region((int(x), int(y)), 0, tuple(plan.read_size), as_array=True), plan)

    return read


def with_pyvips(path: Path, plan: ReadPlan) -> Contender:
    """A region of libvips."""
    import pyvips

    region = pyvips.Region.new(pyvips.Image.tiffload(str(path)))
    width, height = plan.read_size

    def read(corners: Corners) -> None:
        for x, y in corners:
            pixels = np.frombuffer(region.fetch(int(x), int(y), width, height), np.uint8)
            _resized(pixels.reshape(height, width, -1)[..., :3], plan)

    return read


def with_cucim(path: Path, plan: ReadPlan) -> Contender:
    """CuCIM on the CPU, one location at a time."""
    import cucim

    slide = cucim.CuImage(str(path))

    def read(corners: Corners) -> None:
        for x, y in corners:
            _resized(np.asarray(slide.read_region((int(x), int(y)), tuple(plan.read_size), 0)), plan)

    return read


def with_large_image(path: Path, plan: ReadPlan) -> Contender:
    """The TIFF source of large_image."""
    import large_image_source_tiff

    source = large_image_source_tiff.open(str(path))
    width, height = plan.read_size

    def read(corners: Corners) -> None:
        for x, y in corners:
            region = {"left": int(x), "top": int(y), "width": width, "height": height}
            _resized(source.getRegion(region=region, format="numpy")[0][..., :3], plan)

    return read


def with_fastslide(path: Path, plan: ReadPlan) -> Contender:
    """FastSlide."""
    import fastslide

    slide = fastslide.FastSlide.from_file_path(str(path))

    def read(corners: Corners) -> None:
        for x, y in corners:
            _resized(np.asarray(slide.read_region((int(x), int(y)), 0, tuple(plan.read_size))), plan)

    return read


def bare_decoder(path: Path) -> Contender:
    """Pread and simplejpeg, tile after tile, into the same memory: the limit of this binding."""
    with open_slide(path, mpp_override=MPP) as reader:
        tiles = find_jpeg_tiles(path.name, LocalFile(path), reader.info.level_sizes, jfif_is_ycbcr=False)[0]
    file = os.open(path, os.O_RDONLY)
    out = np.empty((tiles.tile.height, tiles.tile.width, 3), np.uint8)

    def read(corners: Corners) -> None:
        for x, y in corners:
            n = int(y) // tiles.tile.height * tiles.columns + int(x) // tiles.tile.width
            stream = os.pread(file, int(tiles.byte_counts[n]), int(tiles.offsets[n]))
            simplejpeg.decode_jpeg(tiles.complete(stream), "RGB", buffer=out)

    return read


PEERS: dict[str, Callable[[Path, ReadPlan], Contender]] = {
    "tiffslide": with_tiffslide,
    "pyvips": with_pyvips,
    "cucim": with_cucim,
    "large_image": with_large_image,
    "fastslide": with_fastslide,
}


def installed(path: Path, plan: ReadPlan, corners: Corners) -> dict[str, Contender]:
    """The peers that can be imported and read this slide; says why the others cannot."""
    found = {}
    for name, make in PEERS.items():
        try:
            contender = make(path, plan)
            contender(corners[:2])
        except Exception as error:  # noqa: BLE001 - whatever a peer raises, it is left out and named
            print(f"  {name}: left out ({type(error).__name__}: {str(error)[:90]})", flush=True)
            continue
        found[name] = contender
    return found
