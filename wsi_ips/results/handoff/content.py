"""Content of a hand-off package: scores, lesions, tissue and pictures, from which every format is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_ips.errors import HandoffError
from wsi_ips.results.handoff.lesions import Lesion, find_lesions, not_analysed
from wsi_ips.results.handoff.maps import ScoreMaps
from wsi_ips.slides import RGB

MOST_VALUE_OFF = 1e-5
"""Largest difference of a score that is read back: files hold six digits."""


@dataclass(frozen=True)
class Material:
    """What a package holds besides scores; each part may be missing."""

    overlays: Sequence[Path] = ()  # Pictures that are already drawn, with their sidecars beside them; they are copied
    # Returns the pixels of tiles, given their rows, uint8, shape (k, h, w, 3); for the gallery
    read_tiles: Callable[[NDArray[np.int32]], RGB] | None = None
    readable: NDArray[np.int32] | None = None  # Rows of the tiles that can be read; None = all
    tissue: BaseGeometry | None = None  # Tissue that was found, level-0 pixels


@dataclass(frozen=True)
class PackageContent:
    """Everything that formats write from."""

    maps: ScoreMaps  # Scores of the slide
    lesions: Sequence[Lesion]  # Lesions on the first map, largest first
    unseen: BaseGeometry | None  # Tissue that no tile covers, level-0 pixels; None where tissue is not known
    material: Material  # Pictures and tissue

    @classmethod
    def of(cls, maps: ScoreMaps, material: Material) -> Self:
        """Find lesions and tissue without tiles."""
        unseen = None if material.tissue is None else not_analysed(material.tissue, maps)
        return cls(maps, find_lesions(maps), unseen, material)


class PackageFile(NamedTuple):
    """A file of a package."""

    path: Path  # The file
    what: str  # What it is, for ``package.json``
    # Number of things that were too many for the program that opens it; None where nothing can be
    left_out: Mapping[str, int] | None = None


def require_agreement(path: Path, maps: ScoreMaps, found: dict[str, Any], *, agrees: bool) -> dict[str, Any]:
    """Return the figures of a check, rounded.

    Raises
    ------
    HandoffError
        The file does not agree with the scores.
    """
    if not agrees:
        figures = ", ".join(f"{name} {value}" for name, value in found.items())
        raise HandoffError(
            f"slide {maps.slide_id}: {path.name} does not match the scores it was made from ({figures}); it is not "
            "handed over: report this with the recipe"
        )
    return {name: round(value, 9) if isinstance(value, float) else value for name, value in found.items()}


def largest(values: NDArray[np.floating]) -> float:
    """Return the largest absolute value, infinity where one is not finite, 0 where there is none."""
    return float(np.abs(values).max(initial=0.0)) if np.isfinite(values).all() else float("inf")
