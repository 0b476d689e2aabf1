"""Coordinates, sizes, scales and read plans: pure algebra, no I/O.

Conventions (they hold in the whole package)
--------------------------------------------
- Points are (x, y), top-left, level-0 pixels of the full slide unless the name says otherwise.
- Boxes are half-open; sizes are (width, height); arrays are indexed ``[y, x]``.
- ``_px0`` level-0 pixels, ``_px`` pixels of the current level or patch, ``_um`` micrometres,
  ``_mpp`` micrometres per pixel.

Unit algebra: ``px0 * mpp0 = µm``; ``px_level * downsample = px0``; ``mpp_level = mpp0 * downsample``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from wsi_ips.errors import ResolutionError

MPP_TOLERANCE = 0.05  # a level within this relative distance of the target µm/px is read without resampling


class Point(NamedTuple):
    """A position, integer pixels."""

    x: int
    y: int


class Size(NamedTuple):
    """An extent, integer pixels."""

    width: int
    height: int


class Box(NamedTuple):
    """A half-open rectangle ``[x, x + width) x [y, y + height)``, integer pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """First column right of the box."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """First row below the box."""
        return self.y + self.height

    def contains(self, other: Box) -> bool:
        """Return whether ``other`` lies wholly inside this box."""
        return self.x <= other.x and self.y <= other.y and other.right <= self.right and other.bottom <= self.bottom


class Scale(NamedTuple):
    """A pair of per-axis factors: µm per pixel (mpp), or level-0 pixels per level pixel (downsample)."""

    x: float
    y: float

    def times(self, other: Scale) -> Scale:
        """Return the product per axis, e.g. base mpp times downsample is the mpp of a level."""
        return Scale(self.x * other.x, self.y * other.y)

    def over(self, other: Scale) -> Scale:
        """Return the quotient per axis."""
        return Scale(self.x / other.x, self.y / other.y)


@dataclass(frozen=True)
class Pyramid:
    """Level sizes and scale of a slide, from which read plans are made."""

    level_sizes: tuple[Size, ...]  # size in pixels of each level, finest first
    mpp: Scale  # µm per level-0 pixel, per axis

    @property
    def size_px0(self) -> Size:
        """Size of level 0."""
        return self.level_sizes[0]

    def downsample(self, level: int) -> Scale:
        """Return the level-0 pixels per pixel of a level, per axis and never truncated (3.9998 is possible)."""
        return Scale(*self.level_sizes[0]).over(Scale(*self.level_sizes[level]))

    def level_mpp(self, level: int) -> Scale:
        """Return the µm per pixel of a level."""
        return self.mpp.times(self.downsample(level))


@dataclass(frozen=True)
class ReadPlan:
    """Plan for reading patches of one size at one scale from one slide.

    ``read_size`` pixels of ``level`` are read and, where that differs from ``patch_size``, averaged down by area.
    Pixels are never upsampled.
    """

    level: int  # level to read
    downsample: Scale  # level-0 pixels per pixel of that level, per axis
    read_size: Size  # pixels to read at that level
    patch_size: Size  # pixels of the patch that is returned
    requested_mpp: float  # requested µm per patch pixel
    effective_mpp: Scale  # actual µm per patch pixel: `mpp0 * downsample * read_size / patch_size`

    @property
    def resamples(self) -> bool:
        """Whether pixels are averaged down to the patch."""
        return self.read_size != self.patch_size

    @property
    def whole_factor(self) -> int | None:
        """Read pixels per patch pixel where that is one whole number on both axes, else None."""
        factor = self.read_size.width // self.patch_size.width
        whole = self.read_size == Size(self.patch_size.width * factor, self.patch_size.height * factor)
        return factor if whole else None

    @property
    def footprint_px0(self) -> Scale:
        """Width and height of a patch in level-0 pixels (real numbers)."""
        return Scale(self.read_size.width * self.downsample.x, self.read_size.height * self.downsample.y)

    @property
    def px0_per_patch_px(self) -> Scale:
        """Level-0 pixels per patch pixel."""
        return self.footprint_px0.over(Scale(*self.patch_size))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, for stored attributes."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        """Build a plan from the result of :meth:`to_dict`."""
        kinds = {"downsample": Scale, "read_size": Size, "patch_size": Size, "effective_mpp": Scale}
        return cls(**stored | {name: kind(*stored[name]) for name, kind in kinds.items()})


def plan_read(pyramid: Pyramid, *, target_mpp: float, patch_size: Size, tolerance: float = MPP_TOLERANCE) -> ReadPlan:
    """Choose level, read size and resampling for patches at a target scale.

    A level whose µm/px is within ``tolerance`` of the target on both axes is read without resampling (the nearest such
    level). Otherwise the coarsest level that is finer than the target on both axes is read and averaged down. A whole
    factor is used if it meets the target within ``tolerance``, so that every patch pixel is the mean of the same number
    of level pixels; else the exact ratio.

    Raises ResolutionError where the finest level is coarser than the target: pixels are never upsampled.
    """
    levels = range(len(pyramid.level_sizes))
    ratios = {level: pyramid.level_mpp(level).over(Scale(target_mpp, target_mpp)) for level in levels}
    near = [k for k in levels if max(abs(r - 1) for r in ratios[k]) <= tolerance]
    if near:
        level = min(near, key=lambda k: max(abs(r - 1) for r in ratios[k]))
        read_size = patch_size
    else:
        finer = [k for k in levels if max(ratios[k]) <= 1]
        if not finer:
            finest = pyramid.level_mpp(0)
            raise ResolutionError(
                f"the finest level has {finest.x:.4g} x {finest.y:.4g} µm/px, coarser than the requested "
                f"{target_mpp:.4g} µm/px, and pixels are never upsampled: ask for a coarser `mpp`, or "
                "leave the slide out"
            )
        level = max(finer, key=lambda k: max(ratios[k]))
        read_size = _read_size(patch_size, ratios[level], tolerance)
    downsample = pyramid.downsample(level)
    effective = pyramid.mpp.times(downsample.times(Scale(*read_size)).over(Scale(*patch_size)))
    return ReadPlan(level, downsample, read_size, patch_size, target_mpp, effective)


def _read_size(patch_size: Size, ratio: Scale, tolerance: float) -> Size:
    """Return the level pixels under a patch; ``ratio`` is the level's µm/px over the target's, below 1."""
    factor = round(1 / max(ratio))
    if max(abs(r * factor - 1) for r in ratio) <= tolerance:
        return Size(patch_size.width * factor, patch_size.height * factor)
    return Size(max(1, round(patch_size.width / ratio.x)), max(1, round(patch_size.height / ratio.y)))
