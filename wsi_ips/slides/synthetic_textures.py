"""H&E-like textures: concentrations of haematoxylin and eosin on seamless tiles, and their colour.

A texture is a set of interchangeable variants of one 256 px tile. The background and the nuclei that cross the tile's
border are the same in all variants of a texture (on a torus), so that any two fit side by side without a seam; the
nuclei inside differ. Colour follows Beer and Lambert: ``I = exp(-(H·h + E·e))`` per channel, with the stain vector of
haematoxylin by Ruifrok and Johnston (2001) and a redder eosin, closer to scanned slides.

Pure, seeded. Lengths are µm; arrays are [y, x].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from wsi_ips.slides.base import RGB

Floats = NDArray[np.float32]
TextureName = Literal["lymphoid", "stroma", "follicle", "tumour", "fat"]
TEXTURES: tuple[TextureName, ...] = ("lymphoid", "stroma", "follicle", "tumour", "fat")

TILE_PX = 256
VARIANTS = 10
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.12, 0.86, 0.36], np.float32)


@dataclass(frozen=True)
class Cells:
    """Look of one kind of cell."""

    per_mm2: float
    radius_um: float  # mean radius of the nucleus
    radius_sd_um: float
    elongation: float  # largest ratio of the axes
    rim: float  # haematoxylin at the nuclear membrane
    body: float  # haematoxylin inside
    nucleoli: int = 0  # most nucleoli per nucleus


@dataclass(frozen=True)
class Recipe:
    """Look of one texture: its cells over a ground of eosin."""

    cells: tuple[Cells, ...]
    eosin: float
    eosin_noise: float
    fibre: float = 0.0


RECIPES: dict[TextureName, Recipe] = {
    "lymphoid": Recipe((Cells(8500, 3.0, 0.4, 1.3, 1.25, 1.05), Cells(300, 5.0, 0.8, 1.7, 0.7, 0.4)), 0.34, 0.10),
    "stroma": Recipe((Cells(900, 3.4, 0.5, 3.4, 1.0, 0.85), Cells(500, 3.0, 0.3, 1.2, 1.2, 1.0)), 0.50, 0.10, 0.20),
    "follicle": Recipe((Cells(10500, 3.3, 0.35, 1.2, 1.1, 0.95),), 0.30, 0.06),
    "tumour": Recipe((Cells(3300, 6.8, 1.4, 1.6, 1.35, 0.8, 2), Cells(300, 3.1, 0.3, 1.2, 1.2, 1.0)), 0.50, 0.10),
    "fat": Recipe((), 0.02, 0.0),
}


@dataclass(frozen=True)
class Stain:
    """Strength of each dye on a slide, and the colour of its glass."""

    haematoxylin: float  # factor of concentration, 1 is ordinary
    eosin: float  # the same
    hue: tuple[tuple[float, float, float], tuple[float, float, float]]  # small change of the two stain vectors
    glass: tuple[int, int, int]  # RGB of the empty glass

    def colour(self, concentration: Floats) -> RGB:
        """Return the RGB colour, shape (..., 3), of concentrations of shape (..., 2)."""
        vectors = np.stack([HAEMATOXYLIN, EOSIN]) + np.array(self.hue, np.float32)
        vectors *= np.array([[self.haematoxylin], [self.eosin]], np.float32)
        light = np.exp(-(concentration @ vectors)) * np.array(self.glass, np.float32)
        return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)


def make_texture(name: TextureName, rng: Generator, *, mpp: float, variants: int = VARIANTS) -> Floats:
    """Return haematoxylin and eosin of all variants of a texture: float32, shape (variants, 256, 256, 2)."""
    recipe = RECIPES[name]
    ground = recipe.eosin + recipe.eosin_noise * _periodic_noise(rng, 12 / mpp)
    if recipe.fibre:
        ground += recipe.fibre * _fibres(rng, mpp)
    if name == "fat":
        return np.repeat(_fat(rng, mpp)[None], variants, axis=0)
    border = [_scatter(rng, cells, mpp) for cells in recipe.cells]
    out = np.empty((variants, TILE_PX, TILE_PX, 2), np.float32)
    for number in range(variants):
        variant = out[number]
        variant[..., 0], variant[..., 1] = 0.06, ground
        for cells, fixed in zip(recipe.cells, border, strict=True):
            _stamp_all(variant, fixed, _scatter(rng, cells, mpp), cells, mpp, rng)
        grain = rng.normal(0, 0.035, (TILE_PX, TILE_PX, 2)).astype(np.float32)
        variant += ndimage.gaussian_filter(grain, (0.6, 0.6, 0), mode="wrap")
    return np.maximum(out, 0)


def _periodic_noise(rng: Generator, wavelength_px: float) -> Floats:
    """Return smooth noise on a torus of one tile, of about zero mean and unit deviation."""
    noise = ndimage.gaussian_filter(rng.normal(size=(TILE_PX, TILE_PX)), wavelength_px / 4, mode="wrap")
    return np.asarray(noise / max(1e-9, float(noise.std())), np.float32)


def match_mean_colour(pixels: RGB, target: RGB) -> RGB:
    """Apply a tone curve ``I ** gamma`` per channel, so that the mean colour equals the target's."""
    out = np.empty_like(pixels)
    for channel in range(3):
        values = np.arange(256) / 255
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256) / pixels[..., channel].size
        wanted = float(target[..., channel].mean()) / 255
        low, high = 0.2, 5.0
        for _ in range(40):
            gamma = (low * high) ** 0.5
            low, high = (gamma, high) if counts @ values**gamma > wanted else (low, gamma)
        out[..., channel] = np.rint(255 * values**gamma).astype(np.uint8)[pixels[..., channel]]
    return out


def _fibres(rng: Generator, mpp: float) -> Floats:
    """Draw wavy bundles in one direction, periodic, about -1 to 1."""
    y, x = np.mgrid[:TILE_PX, :TILE_PX] / TILE_PX
    bundles = max(2, round(TILE_PX * mpp / 9))  # one every 9 µm
    phase = 2 * np.pi * (bundles * y + (bundles // 3) * x) + 2.2 * _periodic_noise(rng, 45 / mpp)
    return np.asarray(np.sin(phase) * (0.7 + 0.3 * _periodic_noise(rng, 25 / mpp)), np.float32)


def _scatter(rng: Generator, cells: Cells, mpp: float) -> Floats:
    """Return centres of cells on the torus, kept apart by a jittered grid, shape (n, 2) x, y."""
    side_um = TILE_PX * mpp
    per_side = max(1, round((cells.per_mm2 * (side_um / 1000) ** 2) ** 0.5))
    step = TILE_PX / per_side
    y, x = np.mgrid[:per_side, :per_side].reshape(2, -1)
    shift = rng.uniform(-0.42, 0.42, (2, x.size))
    row_shift = 0.5 * (y % 2)  # rows of a hexagonal pattern
    return np.stack([(x + row_shift + shift[0]) * step, (y + shift[1]) * step], axis=1).astype(np.float32)


def _stamp_all(variant: Floats, fixed: Floats, free: Floats, cells: Cells, mpp: float, rng: Generator) -> None:
    """Draw border nuclei (the same in all variants) and inner nuclei (of this variant) on a tile."""
    reach = (cells.radius_um + 2 * cells.radius_sd_um) * cells.elongation**0.5 / mpp + 2
    crosses = ((fixed % TILE_PX < reach) | (fixed % TILE_PX > TILE_PX - reach)).any(axis=1)
    inner = ((free % TILE_PX >= reach) & (free % TILE_PX <= TILE_PX - reach)).all(axis=1)
    for centre in fixed[crosses]:
        _stamp(variant, centre, cells, mpp, np.random.default_rng(int.from_bytes(centre.tobytes(), "little")))
    for centre in free[inner]:
        _stamp(variant, centre, cells, mpp, rng)


def _stamp(variant: Floats, centre: Floats, cells: Cells, mpp: float, rng: Generator) -> None:
    """Draw one nucleus: an ellipse with a soft edge, a darker membrane and nucleoli."""
    radius = max(1.5, rng.normal(cells.radius_um, cells.radius_sd_um)) / mpp
    ratio = rng.uniform(1, cells.elongation) ** 0.5
    angle, wobble = rng.uniform(0, np.pi), rng.uniform(0, 0.12)
    half = int(radius * ratio + 3)
    cx, cy = int(centre[0]), int(centre[1])
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    dx -= centre[0] - cx
    dy -= centre[1] - cy
    u = (dx * np.cos(angle) + dy * np.sin(angle)) / (radius * ratio)
    v = (dy * np.cos(angle) - dx * np.sin(angle)) / (radius / ratio)
    distance = np.hypot(u, v) * (1 + wobble * np.cos(3 * np.arctan2(v, u) + angle))
    edge = np.clip((1 - distance) * radius / 1.2 + 0.5, 0, 1)  # soft over about a pixel
    strength = rng.uniform(0.85, 1.15) + 0.12 * ndimage.gaussian_filter(rng.normal(size=u.shape), 1.2) * 3
    body = cells.body + (cells.rim - cells.body) * np.clip((distance - 0.6) / 0.3, 0, 1)
    for _ in range(int(rng.integers(0, cells.nucleoli + 1)) if cells.nucleoli else 0):
        nx, ny = rng.uniform(-0.4, 0.4, 2)
        body = np.maximum(body, 1.7 * (np.hypot(u - nx, v - ny) < 1.3 / mpp / radius))
    rows, columns = (cy + np.arange(-half, half + 1)) % TILE_PX, (cx + np.arange(-half, half + 1)) % TILE_PX
    box = np.ix_(rows, columns)
    patch = variant[box]
    patch[..., 0] = np.maximum(patch[..., 0], edge * body * strength)
    patch[..., 1] *= 1 - 0.45 * edge
    variant[box] = patch


def _fat(rng: Generator, mpp: float) -> Floats:
    """Draw empty vacuoles between thin walls, shape (256, 256, 2)."""
    count = max(4, round((TILE_PX * mpp / 55) ** 2))
    seeds = rng.uniform(0, TILE_PX, (count, 2))
    shifts = np.array([-TILE_PX, 0, TILE_PX])
    around = np.concatenate([seeds + np.array([dx, dy]) for dx in shifts for dy in shifts])  # on the torus
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    distance = np.sort(np.hypot(x[..., None] - around[:, 0], y[..., None] - around[:, 1]), axis=-1)
    wall = np.exp(-(((distance[..., 1] - distance[..., 0]) * mpp / 2.2) ** 2))
    return np.stack([0.10 * wall, 0.45 * wall], axis=-1).astype(np.float32)
