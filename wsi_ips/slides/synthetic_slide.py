"""Synthetic slides: real files with H&E-like tissue and planted tumour, as tiled JPEG pyramids in Aperio form (SVS).

A slide is a mosaic of 256 px tiles. A tile that shows only one texture is one of that texture's variants, whose JPEG is
stored once for the whole slide; only tiles where textures meet are drawn. So a slide of gigapixels is written quickly.

Tumour texture has the mean colour of the follicle, and every file holds the variants of all textures, so that neither
colour nor file content reveals the label.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from wsi_ips.geometry import Size
from wsi_ips.provenance import atomic_path
from wsi_ips.slides.base import RGB
from wsi_ips.slides.synthetic_textures import (
    TEXTURES,
    TILE_PX,
    VARIANTS,
    Floats,
    TextureName,
    make_texture,
    match_mean_colour,
)
from wsi_ips.slides.synthetic_tissue import (
    CELL_PX,
    Field,
    Layout,
    SyntheticSlide,
    blur_field,
    bubble_field,
    fold_field,
    pen_field,
    plan_layout,
)

SCHEMA_VERSION = 1
LEVEL_STEP = 4
SMALLEST_LEVEL_PX = 1024
CELLS = TILE_PX // CELL_PX
# width of the soft edge of each field, in cells
EDGE_CELLS = {"stroma": 2.0, "fat": 0.5, "follicle": 1.0, "tumour": 1.0, "tissue": 0.4}
EDGE_CELLS |= {"fold": 0.4, "blur": 3.0, "pen": 0.6, "bubble": 0.5}
BUBBLE_RIM_UM = 40.0
JPEG_QUALITY = 80


def write_synthetic_slide(plan: SyntheticSlide, path: Path) -> tuple[NDArray[np.float64], ...]:
    """Write a slide; return the outline of each tumour, shape (n, 2): x, y in level-0 pixels, ring not closed."""
    rng = np.random.default_rng([plan.seed, 7])
    layout = plan_layout(plan, rng)
    levels, thumbnail = _pyramid(_Painter(plan, layout, rng))
    write_aperio(path, levels, thumbnail=thumbnail, mpp=plan.mpp)
    return layout.lesions


@dataclass(frozen=True)
class Planted:
    """Truth of a slide on a raster of a quarter of a cell (8 level-0 pixels); bool, all of one shape."""

    tissue: NDArray[np.bool_]  # also under ink, with its fat and lumina
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
    rows, columns = layout.tissue.shape

    def raster(name: str) -> NDArray[np.bool_]:
        if name not in painter.fields:
            return np.zeros((4 * rows, 4 * columns), bool)
        crop = Image.fromarray(painter.fields[name][1 : rows + 1, 1 : columns + 1])
        return np.asarray(crop.resize((4 * columns, 4 * rows), Image.Resampling.BILINEAR)) > 0

    return Planted(*map(raster, ("tissue", "pen", "blur", "fold", "bubble")))


class _Painter:
    """Draws the tiles of level 0."""

    def __init__(self, plan: SyntheticSlide, layout: Layout, rng: Generator) -> None:
        self.plan = plan
        self.rows, self.columns = tile_counts(plan.size_px0)
        self.glass = np.full((TILE_PX, TILE_PX, 3), plan.stain.glass, np.uint8)
        self.textures = {name: plan.stain.colour(values) for name, values in _bank(plan.bank, plan.mpp).items()}
        self.textures["tumour"] = match_mean_colour(self.textures["tumour"], self.textures["follicle"])
        self.variant = rng.integers(0, VARIANTS, (self.rows, self.columns))
        fields = {name: getattr(layout, name) for name in ("stroma", "fat", "follicle", "tumour", "tissue")}
        if plan.pen:
            fields["pen"] = pen_field(rng, layout.tissue.shape)
        if plan.blur:
            fields["blur"] = blur_field(rng, layout.tissue)
        if plan.fold:
            fields["fold"] = fold_field(rng, layout.tissue, plan.mpp)
        if plan.bubble:
            fields["bubble"] = bubble_field(rng, layout.tissue.shape, plan.mpp)
        # each padded to whole tiles and by one cell on each side
        right, below = self.columns * CELLS - layout.tissue.shape[1], self.rows * CELLS - layout.tissue.shape[0]
        margin = ((1, 1 + below), (1, 1 + right))
        self.fields: dict[str, Field] = {name: np.pad(field, margin, mode="edge") for name, field in fields.items()}

    def tiles(self) -> Iterator[tuple[int, int, TextureName | RGB]]:
        """Yield row, column and texture or pixels of all tiles that are not plain glass."""
        crops = {name: _extremes(field) for name, field in self.fields.items()}
        special = np.zeros((self.rows, self.columns), bool)
        for name in self.fields.keys() & {"pen", "blur", "fold", "bubble"}:
            special |= crops[name][1] > -1
        for row, column in np.argwhere((crops["tissue"][1] > -1) | special).tolist():
            ranges = {name: (low[row, column], high[row, column]) for name, (low, high) in crops.items()}
            texture = None if special[row, column] else _pure(ranges)
            yield row, column, texture or self._drawn(row, column)

    def _drawn(self, row: int, column: int) -> RGB:
        """Draw a tile where textures meet."""
        variant = int(self.variant[row, column])
        image = Image.fromarray(self.textures["lymphoid"][variant])
        for name in ("stroma", "fat", "follicle", "tumour"):
            if weight := self._weight(name, row, column):
                image = Image.composite(Image.fromarray(self.textures[name][variant]), image, weight)
        glass, weight = Image.fromarray(self.glass), self._weight("tissue", row, column)
        image = Image.composite(image, glass, weight) if weight else glass
        if weight := self._weight("fold", row, column):
            image = Image.composite(ImageChops.multiply(image, image), image, weight)  # two layers
        if weight := self._weight("blur", row, column):
            image = Image.composite(image.filter(ImageFilter.GaussianBlur(2.5 / self.plan.mpp)), image, weight)
        if weight := self._weight("pen", row, column):
            ink = Image.new("RGB", image.size, self.plan.pen)
            image = Image.composite(ink, image, weight.point(lambda v: v * 0.85))
        if weight := self._weight("bubble", row, column):
            inside = self._weight("bubble", row, column, inset=BUBBLE_RIM_UM / self.plan.mpp / CELL_PX)
            image = _under_air(image, weight, inside)
        return np.asarray(image)

    def _weight(self, name: str, row: int, column: int, *, inset: float = 0.0) -> Image.Image | None:
        """Return the weight 0-255 of a field on a tile, None where it is 0 everywhere."""
        if name not in self.fields:
            return None
        edge, rows = EDGE_CELLS[name], slice(row * CELLS, (row + 1) * CELLS + 2)
        crop = self.fields[name][rows, column * CELLS : (column + 1) * CELLS + 2] - inset
        if crop.max() < -edge:
            return None
        box = (1, 1, CELLS + 1, CELLS + 1)
        fine = Image.fromarray(crop).resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR, box=box)
        return Image.fromarray(np.rint(np.clip(np.asarray(fine) / edge + 0.5, 0, 1) * 255).astype(np.uint8))


def _pure(ranges: dict[str, tuple[float, float]]) -> TextureName | None:
    """Return the only texture of a tile, None where two meet; ``ranges`` are lowest and highest value of each field."""
    if ranges["tissue"][0] <= EDGE_CELLS["tissue"]:
        return None
    names: tuple[TextureName, ...] = ("tumour", "follicle", "fat", "stroma")
    for name in names:
        low, high = ranges[name]
        if low > EDGE_CELLS[name]:
            return name
        if high >= -EDGE_CELLS[name]:
            return None
    return "lymphoid"


@dataclass(frozen=True)
class EncodedLevel:
    """One level of a pyramid."""

    size: Size  # size in pixels
    place: NDArray[np.int32]  # index in `tiles` of the tile at each place, shape (tile rows, tile columns)
    tiles: Sequence[bytes]  # JPEG streams of 256 x 256 px


def encode_jpeg(pixels: RGB) -> bytes:
    """Encode a self-contained baseline JPEG, YCbCr with 4:2:0 subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return buffer.getvalue()


def tile_counts(size: Size) -> tuple[int, int]:
    """Return the numbers of tile rows and columns that cover a level."""
    return -(-size.height // TILE_PX), -(-size.width // TILE_PX)


def write_aperio(path: Path, levels: Sequence[EncodedLevel], *, thumbnail: RGB, mpp: float) -> None:
    """Write a slide, complete or not at all: levels from the finest, and a small image of the whole slide.

    The thumbnail is directory 1, where TiffSlide expects it. OpenSlide needs a tiled first directory whose description
    begins with "Aperio". Directories are written without tiles, which follow, each once, however often it is shown.
    """
    whole = levels[0].size
    head = f"Aperio Image Library v12.0.0 (wsi-ips synthetic)\r\n{whole.width}x{whole.height} "
    facts = f"|AppMag = {round(10 / mpp)}|MPP = {mpp:.6g}"
    first = f"{head}[0,0 {whole.width}x{whole.height}] ({TILE_PX}x{TILE_PX}) JPEG/YCC Q={JPEG_QUALITY}"
    form: dict[str, Any] = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2), "metadata": None}
    with atomic_path(path) as temporary:
        with tifffile.TiffWriter(temporary, bigtiff=True, byteorder="<") as tiff:
            write: Any = partial(tiff.write, dtype=np.uint8, software=False, **form)
            for number, level in enumerate(levels):
                suffix = f" -> {level.size.width}x{level.size.height} JPEG/YCC" if number else ""
                shape, text = (level.size.height, level.size.width, 3), f"{first}{suffix}{facts}"
                write(repeat(b"", level.place.size), shape=shape, tile=(TILE_PX, TILE_PX), description=text)
                if number == 0:
                    shown, rows = iter([encode_jpeg(thumbnail)]), thumbnail.shape[0]
                    text = f"{first} -> thumbnail{facts}"
                    write(shown, shape=thumbnail.shape, rowsperstrip=rows, description=text)
        _add_tiles(temporary, levels)


def _add_tiles(path: Path, levels: Sequence[EncodedLevel]) -> None:
    with path.open("r+b") as file, tifffile.TiffFile(file, mode="r+") as tiff:
        pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
        for page, level in zip(pages, levels, strict=True):
            lengths = np.array([len(tile) for tile in level.tiles], np.uint64)
            start = file.seek(0, 2)
            file.writelines(level.tiles)
            offsets = start + np.cumsum(lengths) - lengths
            for tag, values in (("TileOffsets", offsets), ("TileByteCounts", lengths)):
                page.tags[tag].overwrite(values[level.place.ravel()].tolist(), dtype="Q")


def _pyramid(painter: _Painter) -> tuple[list[EncodedLevel], RGB]:
    """Return all levels, encoded, and a thumbnail."""
    plan = painter.plan
    # also unused textures: the content of a file must not reveal its label
    variants = {(name, variant): painter.textures[name][variant] for name in TEXTURES for variant in range(VARIANTS)}
    tiles = [encode_jpeg(pixels) for pixels in (painter.glass, *variants.values())]
    shared = {key: (number, _reduced(pixels)) for number, (key, pixels) in enumerate(variants.items(), 1)}
    place = np.zeros((painter.rows, painter.columns), np.int32)
    canvas: dict[tuple[int, int], RGB] = {}
    for row, column, shown in painter.tiles():
        if isinstance(shown, str):
            place[row, column], piece = shared[shown, int(painter.variant[row, column])]
        else:
            place[row, column], piece = len(tiles), _reduced(shown)
            tiles.append(encode_jpeg(shown))
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
    place, tiles = np.zeros(tile_counts(size), np.int32), [glass]
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


def _extremes(field: Field) -> tuple[Field, Field]:
    """Return the lowest and highest value in and around each tile, shape (rows, columns)."""
    window = np.lib.stride_tricks.sliding_window_view(field, (CELLS + 2, CELLS + 2))[::CELLS, ::CELLS]
    return window.min(axis=(2, 3)), window.max(axis=(2, 3))


def _under_air(image: Image.Image, disc: Image.Image, inside: Image.Image | None) -> Image.Image:
    """Draw a bubble: a grey rim and washed-out tissue inside."""
    dark = image.convert("L").point(lambda v: v * 0.55)
    washed = Image.blend(image.filter(ImageFilter.GaussianBlur(3)), Image.new("RGB", image.size, (238, 238, 238)), 0.5)
    ring = Image.composite(Image.merge("RGB", (dark, dark, dark)), image, disc)
    return Image.composite(washed, ring, inside) if inside else ring
