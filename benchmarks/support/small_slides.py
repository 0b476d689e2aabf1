"""Many small slides, fast, and six ways to break one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy import ndimage

TILE_PX, COLUMNS, ROWS, DOWNSAMPLE = 256, 14, 9, 4
BANK = 24
MPP = 0.5
POINTS = 1_500_000
"""Of an outline whose tree takes some 700 MB of memory."""

WAYS = {
    "missing": "no such file",
    "empty": "0 bytes",
    "text": "no reader opens it",
    "cut": "cut",
    "spoiled": "spoiled",
    "memory": "out of memory",
}
"""How a slide is broken, and what its reason must hold."""


def write_cohort(folder: Path, slides: int, broken: int) -> dict[str, str]:
    """Write slides, some of them broken, and a manifest; how each broken one is, by slide_id."""
    bank = [_tissue(seed) for seed in range(BANK)]
    streams, glass = [_encoded(tile) for tile in bank], np.full((TILE_PX, TILE_PX, 3), 242, np.uint8)
    rng = np.random.default_rng(0)
    ways = dict(zip(rng.permutation(slides)[:broken].tolist(), list(WAYS) * broken, strict=False))
    _write_huge_annotation(folder / "huge.xml")
    rows, named = [], {}
    for number in range(slides):
        way = ways.get(number, "")
        name = f"slide_{number:05d}"
        path = folder / f"{name}.tif"
        _write_slide(path, number, bank, streams, glass)
        _spoil(path, way)
        rows.append({"slide_id": name, "path": path.name, "annotation": "huge.xml" if way == "memory" else ""})
        if way:
            named[name] = way
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return named


def _tissue(seed: int) -> np.ndarray:
    """Pink with darker dots."""
    rng = np.random.default_rng(seed)
    dots = ndimage.gaussian_filter(rng.normal(size=(TILE_PX, TILE_PX)), 3) > 0.08
    pixels = np.where(dots[..., None], (110, 60, 140), (225, 150, 190)) + rng.normal(0, 6, (TILE_PX, TILE_PX, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85, subsampling="4:2:0")
    return buffer.getvalue()


def _write_slide(path: Path, seed: int, bank: list[np.ndarray], streams: list[bytes], glass: np.ndarray) -> None:
    """A blob of tissue on glass, another one for each seed; 3 584 x 2 304 px, two levels, 1.8 x 1.2 mm."""
    rng = np.random.default_rng([7, seed])
    y, x = np.mgrid[:ROWS, :COLUMNS]
    centre, radius = (rng.uniform(3, COLUMNS - 3), rng.uniform(2, ROWS - 2)), rng.uniform(2.0, 3.5)
    inside = np.hypot(x - centre[0], y - centre[1]) < radius
    chosen = np.where(inside, rng.integers(0, BANK, inside.shape), -1)
    small = [tile[::DOWNSAMPLE, ::DOWNSAMPLE] for tile in [*bank, glass]]
    coarse = np.concatenate([np.concatenate([small[n] for n in row], 1) for row in chosen], 0)
    height, width = coarse.shape[:2]
    padded = np.pad(coarse, [(0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)], "edge")
    parts = [
        _encoded(padded[top : top + TILE_PX, left : left + TILE_PX])
        for top in range(0, height, TILE_PX)
        for left in range(0, width, TILE_PX)
    ]
    empty = _encoded(glass)
    with tifffile.TiffWriter(path) as tif:
        for level, (tiles, shape) in enumerate(
            (
                ([empty if n < 0 else streams[n] for n in chosen.ravel()], (ROWS * TILE_PX, COLUMNS * TILE_PX, 3)),
                (parts, (height, width, 3)),
            )
        ):
            factor = DOWNSAMPLE**level
            tif.write(
                iter(tiles),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=(2, 2),
                subfiletype=level,
                resolution=(1e4 / MPP / factor, 1e4 / MPP / factor),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def _spoil(path: Path, way: str) -> None:
    if way == "missing":
        path.unlink()
    elif way == "empty":
        path.write_bytes(b"")
    elif way == "text":
        path.write_text("not a slide\n" * 100)
    elif way == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif way == "spoiled":
        # Directories stand before or behind the streams; of every stream the middle is lost.
        with tifffile.TiffFile(path) as tif:
            spans = [s for page in tif.pages for s in zip(page.dataoffsets, page.databytecounts, strict=True)]  # type: ignore[union-attr]
        content = bytearray(path.read_bytes())
        for start, count in spans:
            content[start : start + count] = bytes(count)
        path.write_bytes(content)


def _write_huge_annotation(path: Path) -> None:
    point = '<Coordinate Order="0" X="1.0" Y="2.0" />\n'
    head = '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>\n'
    head += '<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor">'
    tail = "</Coordinates></Annotation></Annotations><AnnotationGroups></AnnotationGroups></ASAP_Annotations>\n"
    path.write_text(f"{head}<Coordinates>\n{point * POINTS}{tail}")
