"""Plan of a synthetic slide, and where its tissue, fat, stroma and planted regions lie. Pure, seeded.

Fields are signed distances in cells (positive inside) on a grid of cells of 32 level-0 pixels; the value of cell (row,
column) is that of its centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import measure

from wsi_ips.geometry import Size
from wsi_ips.slides.synthetic_textures import Stain

CELL_PX = 32
Field = NDArray[np.float32]
BlobKind = Literal["follicle", "tumour"]


@dataclass(frozen=True)
class PlannedBlob:
    """A region to plant: benign follicle or tumour, of a diameter (of the circle of equal area) in mm."""

    kind: BlobKind
    diameter_mm: float


@dataclass(frozen=True)
class SyntheticSlide:
    """Plan of one slide; the same plan gives the same file, byte for byte."""

    slide_id: str
    seed: int  # seed of the layout
    size_px0: Size  # width and height of level 0
    mpp: float  # µm per level-0 pixel
    tissue_mm2: float
    blobs: tuple[PlannedBlob, ...]
    stain: Stain  # colour of the slide
    bank: int = 0  # set of texture variants; training and held-out slides share no nucleus
    pen: tuple[int, int, int] | None = None  # colour of a pen mark, or None
    blur: bool = False  # whether a region is out of focus
    fat_share: float | None = None  # share of the tissue that is fat; None for the little that a lymph node has
    fragments: int = 1  # number of pieces of tissue
    fold: bool = False  # whether the tissue is folded along a line
    bubble: bool = False  # whether there is an air bubble under the coverslip

    @property
    def label(self) -> int:
        """1 where any planted region is tumour."""
        return int(any(blob.kind == "tumour" for blob in self.blobs))


@dataclass(frozen=True)
class Layout:
    """Fields of one slide, each of shape (rows, columns) of cells: signed distance to the edge, in cells."""

    tissue: Field
    stroma: Field
    fat: Field
    follicle: Field
    tumour: Field
    lesions: tuple[NDArray[np.float64], ...]  # outline of each tumour, (n, 2): x, y level-0 px, ring not closed


def plan_layout(slide: SyntheticSlide, rng: Generator) -> Layout:
    """Draw a slide's layout; blobs lie wholly inside the tissue where they fit."""
    size = slide.size_px0
    shape = (-(-size.height // CELL_PX), -(-size.width // CELL_PX))
    cell_mm = CELL_PX * slide.mpp / 1000
    area_cells, pieces = slide.tissue_mm2 / cell_mm**2, slide.fragments
    tissue = _tissue(rng, shape, area_cells) if pieces == 1 else _fragments(rng, shape, area_cells, pieces)
    stroma = np.asarray(6 * (_smooth_noise(rng, shape, 0.9 / cell_mm) - 0.7), np.float32)
    lobules = _smooth_noise(rng, shape, 0.5 / cell_mm)
    level = 1.9 if slide.fat_share is None else float(np.quantile(lobules[tissue > 0], 1 - slide.fat_share))
    fat = np.asarray(8 * (lobules - level), np.float32)
    planted = _planted(rng, tissue, slide, cell_mm)
    nothing = np.full(shape, -99, np.float32)
    tumour = np.maximum.reduce([nothing, *planted["tumour"]])
    follicle = np.maximum.reduce([nothing, *planted["follicle"]])
    any_blob = np.maximum(tumour, follicle)
    return Layout(
        tissue=tissue,
        stroma=np.minimum(stroma, -any_blob - 1),
        fat=np.minimum(fat, -any_blob - 3),
        follicle=follicle,
        tumour=tumour,
        lesions=tuple(outline for field in planted["tumour"] for outline in _outlines(field)),
    )


def _planted(rng: Generator, tissue: Field, slide: SyntheticSlide, cell_mm: float) -> dict[BlobKind, list[Field]]:
    """Place the blobs, the largest first, each where the others leave room."""
    planted: dict[BlobKind, list[Field]] = {"follicle": [], "tumour": []}
    room = tissue.copy()
    for blob in sorted(slide.blobs, key=lambda b: -b.diameter_mm):
        field, centre = _blob(rng, room, blob.diameter_mm / 2 / cell_mm)
        field = np.minimum(field, tissue - 0.5)
        planted[blob.kind].append(field)
        room = np.minimum(room, -field - 2)
        room[centre] = -99
    return planted


def _smooth_noise(rng: Generator, shape: tuple[int, int], wavelength_cells: float) -> Field:
    """Return noise of about unit deviation and a given wavelength."""
    height, width = (max(4, int(side / wavelength_cells * 2) + 4) for side in shape)
    coarse = rng.normal(size=(height, width)).astype(np.float32)
    fine = np.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    return np.asarray(fine / max(1e-6, float(coarse.std()) * 0.75), np.float32)


def _signed_distance(mask: NDArray[np.bool_]) -> Field:
    """Return the distance to the edge of a mask: positive inside, zero halfway between cells in and out."""
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return np.asarray(np.where(mask, inside - 0.5, 0.5 - outside), np.float32)


def _tissue(rng: Generator, shape: tuple[int, int], area_cells: float) -> Field:
    """Draw one lobed piece, off centre, away from the edges of the glass."""
    height, width = shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    centre = height * rng.uniform(0.42, 0.58), width * rng.uniform(0.40, 0.60)
    u, v = _turned(y, x, centre, rng.uniform(0, np.pi))
    ratio, radius = rng.uniform(1.1, 1.7), (area_cells / np.pi) ** 0.5
    field = 1 - np.hypot(u / ratio**0.5, v * ratio**0.5) / radius
    field += 0.30 * _smooth_noise(rng, shape, 1.3 * radius) + 0.05 * _smooth_noise(rng, shape, 0.2 * radius)
    margin = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
    field[margin < 12] = -9
    cut = np.partition(field.ravel(), -int(area_cells))[-int(area_cells)]
    labels = measure.label(field > cut)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return _signed_distance(ndimage.binary_fill_holes(labels == largest))


def _fragments(rng: Generator, shape: tuple[int, int], area_cells: float, count: int) -> Field:
    """Draw pieces of uneven size scattered over the glass, as from a curettage or a needle."""
    height, width = shape
    shares = rng.dirichlet(np.full(count, 4.0))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    field = np.full(shape, -99, np.float32)
    ragged = _smooth_noise(rng, shape, 0.6 * (area_cells / count) ** 0.5)
    for share in sorted(shares.tolist(), reverse=True):
        radius, angle, ratio = (share * area_cells / np.pi) ** 0.5, rng.uniform(0, np.pi), rng.uniform(1.2, 4.0)
        reach = radius * ratio**0.5 + 6
        room = np.argwhere(field < -reach)
        inner = room[(np.minimum(room, np.array(shape) - 1 - room) > reach).all(axis=1)] if len(room) else room
        if not len(inner):
            continue
        u, v = _turned(y, x, inner[rng.integers(len(inner))], angle)
        field = np.maximum(field, radius - np.hypot(u / ratio**0.5, v * ratio**0.5) + 0.15 * radius * ragged)
    labels = measure.label(field > 0)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return _signed_distance(sizes[labels] > 0.25 * area_cells / count)


def _turned(y: Any, x: Any, centre: Any, angle: float) -> tuple[Any, Any]:
    """Return coordinates along and across an axis at an angle through a centre (y, x)."""
    dy, dx = y - centre[0], x - centre[1]
    return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def _blob(rng: Generator, room: Field, radius: float) -> tuple[Field, tuple[int, int]]:
    """Draw a lobed blob where there is room; return its field and centre."""
    fits = np.flatnonzero(room.ravel() > 1.25 * radius)
    flat = int(rng.choice(fits)) if len(fits) else int(np.argmax(room))
    cy, cx = divmod(flat, room.shape[1])
    y, x = np.mgrid[: room.shape[0], : room.shape[1]].astype(np.float32)
    angle = np.arctan2(y - cy, x - cx)
    waves = sum(rng.uniform(0, 0.35 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    lobed = 1 + np.asarray(waves, np.float32)
    lobed /= float(np.sqrt((lobed**2).mean()))  # equal area
    return np.asarray(radius * lobed - np.hypot(x - cx, y - cy), np.float32), (cy, cx)


def _outlines(field: Field) -> list[NDArray[np.float64]]:
    """Return zero contours of a field as x, y in level-0 pixels, simplified to an eighth of a cell."""
    padded = np.pad(field, 1, constant_values=-99)
    outlines = []
    for contour in measure.find_contours(padded, 0):
        ring = measure.approximate_polygon(contour, 0.125)[:-1, ::-1]
        if len(ring) >= 3:
            outlines.append((ring - 1 + 0.5) * CELL_PX)
    return outlines


def pen_field(rng: Generator, shape: tuple[int, int]) -> Field:
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


def fold_field(rng: Generator, tissue: Field, mpp: float) -> Field:
    """Draw a band of folded tissue, some 100 µm wide; signed distance in cells."""
    inside = np.argwhere(tissue > 0)
    centre = inside.mean(axis=0) + rng.normal(0, 0.1, 2) * inside.std(axis=0)
    y, x = np.mgrid[: tissue.shape[0], : tissue.shape[1]]
    along, across = _turned(y, x, centre, rng.uniform(0, np.pi))
    bent = across + 0.2 * inside.std() * np.sin(along / max(1.0, float(inside.std())))
    length = rng.uniform(0.5, 0.9) * float(inside.std(axis=0).max())
    half = 60 / mpp / CELL_PX
    return np.asarray(np.minimum(np.minimum(half - np.abs(bent), length - np.abs(along)), tissue), np.float32)


def bubble_field(rng: Generator, shape: tuple[int, int], mpp: float) -> Field:
    """Draw a round bubble of about a millimetre; signed distance in cells."""
    radius = rng.uniform(300, 600) / mpp / CELL_PX
    centre = np.array(shape) * rng.uniform(0.3, 0.7, 2)
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(radius - np.hypot(x - centre[1], y - centre[0]), np.float32)


def blur_field(rng: Generator, tissue: Field) -> Field:
    """Draw a round region of tissue that is out of focus; signed distance in cells."""
    inside = np.argwhere(tissue > 0)
    cy, cx = inside[rng.integers(len(inside))]
    y, x = np.mgrid[: tissue.shape[0], : tissue.shape[1]]
    radius = rng.uniform(0.15, 0.3) * np.sqrt(len(inside))
    noise = 0.15 * radius * _smooth_noise(rng, tissue.shape, radius)
    return np.asarray(radius - np.hypot(x - cx, y - cy) + noise, np.float32)
