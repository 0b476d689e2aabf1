"""Synthetic slides: real files with H&E-like tissue and planted tumour.

A slide is a mosaic of 256 px tiles. A tile that shows only one texture is one of that texture's variants, whose JPEG is
stored once for the whole slide; only tiles where textures meet are drawn.

Tumour texture has the mean colour of the follicle, and every file holds the variants of all textures, so that neither
colour nor file content tells the label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter
from scipy import ndimage

from wsi_ips.geometry import Size
from wsi_ips.slides.aperio_writer import TILE_PX, EncodedLevel, encode_jpeg, tile_counts, write_aperio
from wsi_ips.slides.base import RGB
from wsi_ips.slides.synthetic_textures import (
    TEXTURES,
    VARIANTS,
    Floats,
    Stain,
    TextureName,
    make_texture,
    match_mean_colour,
)
from wsi_ips.slides.synthetic_tissue import (
    CELL_PX,
    Field,
    Layout,
    PlannedBlob,
    SyntheticSlide,
    plan_layout,
    smooth_noise,
)

__all__ = [
    "PEN_COLOURS",
    "SCHEMA_VERSION",
    "PlannedBlob",
    "Planted",
    "Stain",
    "SyntheticSlide",
    "planted",
    "write_synthetic_slide",
]

SCHEMA_VERSION = 1
LEVEL_STEP = 4
SMALLEST_LEVEL_PX = 1024
CELLS = TILE_PX // CELL_PX
EDGE_CELLS = {"stroma": 2.0, "fat": 0.5, "follicle": 1.0, "tumour": 1.0, "tissue": 0.4}
"""Width of the soft edge of each field, in cells."""
BUBBLE_RIM_UM = 40.0
PEN_COLOURS = ((40, 60, 150), (20, 110, 60), (35, 35, 40))


def write_synthetic_slide(plan: SyntheticSlide, path: Path) -> tuple[NDArray[np.float64], ...]:
    """Write a slide.

    Returns the outline of each tumour, shape (n, 2): x, y in level-0 pixels, ring not closed.
    """
    rng = np.random.default_rng([plan.seed, 7])
    layout = plan_layout(plan, rng)
    painter = _Painter(plan, layout, rng)
    levels = _pyramid(painter)
    write_aperio(path, levels[0], thumbnail=levels[1], mpp=plan.mpp)
    return layout.lesions


@dataclass(frozen=True)
class Planted:
    """Truth of a slide on a raster of a quarter of a cell (8 level-0 pixels); bool, all of one shape."""

    tissue: NDArray[np.bool_]  # tissue, also under ink, with its fat and lumina
    # where each artefact lies; all False where the plan has none
    pen: NDArray[np.bool_]
    blur: NDArray[np.bool_]
    fold: NDArray[np.bool_]
    bubble: NDArray[np.bool_]


def planted(plan: SyntheticSlide) -> Planted:
    """Compute the truth of a slide from its plan."""
    rng = np.random.default_rng([plan.seed, 7])
    layout = plan_layout(plan, rng)
    painter = _Painter(plan, layout, rng)
    height, width = (4 * side for side in layout.tissue.shape)

    def raster(field: Field | None) -> NDArray[np.bool_]:
        if field is None:
            return np.zeros((height, width), bool)
        crop = field[1 : layout.tissue.shape[0] + 1, 1 : layout.tissue.shape[1] + 1]
        return np.asarray(Image.fromarray(crop).resize((width, height), Image.Resampling.BILINEAR)) > 0

    fields = (painter.fields["tissue"], painter.pen, painter.blur, painter.fold, painter.bubble)
    return Planted(*(raster(field) for field in fields))


class _Painter:
    """Draws the tiles of level 0."""

    def __init__(self, plan: SyntheticSlide, layout: Layout, rng: Generator) -> None:
        self.plan = plan
        self.rows, self.columns = tile_counts(plan.size_px0)
        self.glass = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
        self.glass[:] = np.array(plan.stain.glass, np.uint8)
        self.textures = _coloured(plan)
        self.variant = rng.integers(0, VARIANTS, (self.rows, self.columns))
        self.fields = {
            name: _padded(getattr(layout, name), self.rows, self.columns)
            for name in ("stroma", "fat", "follicle", "tumour", "tissue")
        }
        shape = layout.tissue.shape
        self.pen = _padded(_pen_field(rng, shape), self.rows, self.columns) if plan.pen else None
        self.blur = _padded(_blur_field(rng, layout.tissue), self.rows, self.columns) if plan.blur else None
        self.fold = _padded(_fold_field(rng, layout.tissue, plan.mpp), self.rows, self.columns) if plan.fold else None
        self.bubble = _padded(_bubble_field(rng, shape, plan.mpp), self.rows, self.columns) if plan.bubble else None

    def tiles(self) -> Iterator[tuple[int, int, TextureName | RGB]]:
        """Yield row, column and texture or pixels of all tiles that are not plain glass."""
        crops = {name: _extremes(field) for name, field in self.fields.items()}
        special = np.zeros((self.rows, self.columns), bool)
        for extra in (self.pen, self.blur, self.fold, self.bubble):
            if extra is not None:
                special |= _extremes(extra)[1] > -1
        for row, column in np.argwhere((crops["tissue"][1] > -1) | special).tolist():
            ranges = {name: (low[row, column], high[row, column]) for name, (low, high) in crops.items()}
            texture = None if special[row, column] else _pure(ranges)
            yield row, column, texture or self._drawn(row, column)

    def _drawn(self, row: int, column: int) -> RGB:
        """Draw a tile where textures meet."""
        variant = int(self.variant[row, column])
        image = Image.fromarray(self.textures["lymphoid"][variant])
        for name in ("stroma", "fat", "follicle", "tumour"):
            weight = self._weight(name, row, column)
            if weight is not None:
                image = Image.composite(Image.fromarray(self.textures[name][variant]), image, weight)
        weight = self._weight("tissue", row, column)
        image = Image.composite(image, Image.fromarray(self.glass), weight) if weight else Image.fromarray(self.glass)
        if self.fold is not None and (weight := _soft(self.fold, row, column, 0.4)):
            image = Image.composite(ImageChops.multiply(image, image), image, weight)  # two layers
        if self.blur is not None and (weight := _soft(self.blur, row, column, 3.0)):
            image = Image.composite(image.filter(ImageFilter.GaussianBlur(2.5 / self.plan.mpp)), image, weight)
        if self.pen is not None and (weight := _soft(self.pen, row, column, 0.6)):
            image = Image.composite(
                Image.new("RGB", image.size, self.plan.pen), image, weight.point(lambda v: v * 0.85)
            )
        if self.bubble is not None and (weight := _soft(self.bubble, row, column, 0.5)):
            image = _under_air(
                image, weight, _soft(self.bubble - BUBBLE_RIM_UM / self.plan.mpp / CELL_PX, row, column, 0.5)
            )
        return np.asarray(image)

    def _weight(self, name: str, row: int, column: int) -> Image.Image | None:
        return _soft(self.fields[name], row, column, EDGE_CELLS[name])


def _pure(ranges: dict[str, tuple[float, float]]) -> TextureName | None:
    """Return the only texture of a tile, None where two meet."""

    def inside(name: str) -> bool:
        return ranges[name][0] > EDGE_CELLS[name]

    def outside(name: str) -> bool:
        return ranges[name][1] < -EDGE_CELLS[name]

    if not inside("tissue"):
        return None
    for name in ("tumour", "follicle", "fat", "stroma"):
        if inside(name):
            return name
        if not outside(name):
            return None
    return "lymphoid"


def _pyramid(painter: _Painter) -> tuple[list[EncodedLevel], RGB]:
    """Return all levels, encoded, and a thumbnail."""
    plan = painter.plan
    tiles = [encode_jpeg(painter.glass)]
    shared = {}
    for name in TEXTURES:  # also unused ones: the content of a file must not tell its label
        for variant in range(VARIANTS):
            shared[name, variant] = len(tiles)
            tiles.append(encode_jpeg(painter.textures[name][variant]))
    small = {key: _reduced(painter.textures[key[0]][key[1]]) for key in shared}
    place = np.zeros((painter.rows, painter.columns), np.int32)
    canvas: dict[tuple[int, int], RGB] = {}
    for row, column, shown in painter.tiles():
        if isinstance(shown, str):
            key = (shown, int(painter.variant[row, column]))
            place[row, column], piece = shared[key], small[key]
        else:
            place[row, column] = len(tiles)
            tiles.append(encode_jpeg(shown))
            piece = _reduced(shown)
        _paste(canvas, row, column, piece, painter.glass)
    levels = [EncodedLevel(plan.size_px0, place, tiles)]
    size = Size(plan.size_px0.width // LEVEL_STEP, plan.size_px0.height // LEVEL_STEP)
    while True:
        levels.append(_encoded(canvas, size, levels[0].tiles[0]))
        if max(size) <= SMALLEST_LEVEL_PX:
            return levels, _assembled(canvas, size, painter.glass)
        coarser: dict[tuple[int, int], RGB] = {}
        for (row, column), pixels in canvas.items():
            _paste(coarser, row, column, _reduced(pixels), painter.glass)
        canvas, size = coarser, Size(size.width // LEVEL_STEP, size.height // LEVEL_STEP)


def _paste(canvas: dict[tuple[int, int], RGB], row: int, column: int, piece: RGB, glass: RGB) -> None:
    """Put a reduced tile into the tile of the next level that covers it."""
    key, side = (row // LEVEL_STEP, column // LEVEL_STEP), TILE_PX // LEVEL_STEP
    target = canvas.setdefault(key, glass.copy())
    y, x = row % LEVEL_STEP * side, column % LEVEL_STEP * side
    target[y : y + side, x : x + side] = piece


def _encoded(canvas: dict[tuple[int, int], RGB], size: Size, glass: bytes) -> EncodedLevel:
    place = np.zeros(tile_counts(size), np.int32)
    tiles = [glass]
    for (row, column), pixels in sorted(canvas.items()):
        if row < place.shape[0] and column < place.shape[1]:
            place[row, column] = len(tiles)
            tiles.append(encode_jpeg(pixels))
    return EncodedLevel(size, place, tiles)


def _assembled(canvas: dict[tuple[int, int], RGB], size: Size, glass: RGB) -> RGB:
    rows, columns = tile_counts(size)
    lines = [np.concatenate([canvas.get((r, c), glass) for c in range(columns)], 1) for r in range(rows)]
    return np.ascontiguousarray(np.concatenate(lines, 0)[: size.height, : size.width])


def _reduced(pixels: RGB) -> RGB:
    return np.asarray(Image.fromarray(pixels).reduce(LEVEL_STEP))


@lru_cache(4)
def _bank(number: int, mpp: float) -> dict[TextureName, Floats]:
    """Make one set of texture variants."""
    return {name: make_texture(name, np.random.default_rng([number, i]), mpp=mpp) for i, name in enumerate(TEXTURES)}


def _coloured(plan: SyntheticSlide) -> dict[TextureName, RGB]:
    textures = {name: plan.stain.colour(values) for name, values in _bank(plan.bank, plan.mpp).items()}
    textures["tumour"] = match_mean_colour(textures["tumour"], textures["follicle"])
    return textures


def _padded(field: Field, rows: int, columns: int) -> Field:
    """Pad a field to whole tiles and by one cell on each side."""
    right, below = columns * CELLS - field.shape[1], rows * CELLS - field.shape[0]
    return np.pad(field, ((1, 1 + below), (1, 1 + right)), mode="edge")


def _extremes(field: Field) -> tuple[Field, Field]:
    """Return the lowest and highest value in and around each tile, shape (rows, columns)."""
    window = np.lib.stride_tricks.sliding_window_view(field, (CELLS + 2, CELLS + 2))[::CELLS, ::CELLS]
    return window.min(axis=(2, 3)), window.max(axis=(2, 3))


def _soft(field: Field, row: int, column: int, edge: float) -> Image.Image | None:
    """Return the weight 0-255 of a field on a tile, None where it is 0 everywhere."""
    crop = field[row * CELLS : (row + 1) * CELLS + 2, column * CELLS : (column + 1) * CELLS + 2]
    if crop.max() < -edge:
        return None
    box = (1, 1, CELLS + 1, CELLS + 1)
    fine = Image.fromarray(crop).resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR, box=box)
    weight = np.clip(np.asarray(fine) / edge + 0.5, 0, 1)
    return Image.fromarray(np.rint(weight * 255).astype(np.uint8))


def _pen_field(rng: Generator, shape: tuple[int, int]) -> Field:
    """Draw a pen stroke across the glass; signed distance in cells."""
    height, width = shape
    t = np.linspace(0, 1, 200)
    start, end = rng.uniform(0.1, 0.9, (2, 2)) * [height, width]
    bend = rng.uniform(-0.2, 0.2, 2) * [height, width]
    path = start + (end - start) * t[:, None] + bend * np.sin(np.pi * t)[:, None]
    on = np.zeros(shape, bool)
    y, x = np.clip(np.rint(path).astype(int), 0, [height - 1, width - 1]).T
    on[y, x] = True
    return np.asarray(5.0 - ndimage.distance_transform_edt(~on), np.float32)


def _under_air(image: Image.Image, disc: Image.Image, inside: Image.Image | None) -> Image.Image:
    """Draw a bubble: a grey rim and washed-out tissue inside."""
    dark = image.convert("L").point(lambda v: v * 0.55)
    washed = Image.blend(image.filter(ImageFilter.GaussianBlur(3)), Image.new("RGB", image.size, (238, 238, 238)), 0.5)
    ring = Image.composite(Image.merge("RGB", (dark, dark, dark)), image, disc)
    return Image.composite(washed, ring, inside) if inside else ring


def _fold_field(rng: Generator, tissue: Field, mpp: float) -> Field:
    """Draw a band of folded tissue, some 100 µm wide; signed distance in cells."""
    inside = np.argwhere(tissue > 0)
    cy, cx = inside.mean(axis=0) + rng.normal(0, 0.1, 2) * inside.std(axis=0)
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[: tissue.shape[0], : tissue.shape[1]]
    along, across = (
        (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle),
        (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle),
    )
    bent = across + 0.2 * inside.std() * np.sin(along / max(1.0, float(inside.std())))
    length = rng.uniform(0.5, 0.9) * float(inside.std(axis=0).max())
    half = 60 / mpp / CELL_PX
    return np.asarray(np.minimum(np.minimum(half - np.abs(bent), length - np.abs(along)), tissue), np.float32)


def _bubble_field(rng: Generator, shape: tuple[int, int], mpp: float) -> Field:
    """Draw a round bubble of about a millimetre; signed distance in cells."""
    radius = rng.uniform(300, 600) / mpp / CELL_PX
    centre = np.array(shape) * rng.uniform(0.3, 0.7, 2)
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(radius - np.hypot(x - centre[1], y - centre[0]), np.float32)


def _blur_field(rng: Generator, tissue: Field) -> Field:
    """Draw a round region of tissue that is out of focus; signed distance in cells."""
    inside = np.argwhere(tissue > 0)
    cy, cx = inside[rng.integers(len(inside))]
    y, x = np.mgrid[: tissue.shape[0], : tissue.shape[1]]
    radius = rng.uniform(0.15, 0.3) * np.sqrt(len(inside))
    noise = 0.15 * radius * smooth_noise(rng, tissue.shape, radius)
    return np.asarray(radius - np.hypot(x - cx, y - cy) + noise, np.float32)
