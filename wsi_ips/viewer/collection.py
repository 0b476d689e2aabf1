"""What the viewer shows, as plain values: a worklist, and of each slide its tiles, maps and outlines.

Who fills them in knows runs (:mod:`wsi_ips.pipeline.view`) or single files (:class:`wsi_ips.viewer.files.SlideFiles`);
the server knows only these types.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Point, Scale, Size
from wsi_ips.slides import RGB, SlideReader

NO_TILE = 0
"""Value of a layer where there is no tile; scores 0-1 are 1-255."""


@dataclass(frozen=True)
class Entry:
    """One row of the worklist.

    Attributes
    ----------
    slide_id
        Identity; the only thing by which the page asks for a slide.
    version
        Changes when the slide's file does; part of its tiles' addresses, so that a browser keeps no old ones.
    state, reason
        As in the table of states.
    label, split
        As in the manifest; empty where not known.
    probability
        Of the positive class for the whole slide; None where it was not predicted.
    predicted
        Most probable class.
    tiles, tissue_mm2
        Tiles in its index, and tissue area.
    """

    slide_id: str
    version: str
    state: str = ""
    reason: str = ""
    label: str = ""
    split: str = ""
    probability: float | None = None
    predicted: str = ""
    tiles: int | None = None
    tissue_mm2: float | None = None


@dataclass(frozen=True)
class Layer:
    """A map of one number over a slide, in 8 bits, to be coloured in the browser.

    Attributes
    ----------
    kind
        ``probability``, ``attention``, ``evidence``, ``leave-one-out``, ``truth`` or ``tissue``.
    title, legend
        What it is, and what stands below the ends and the middle of its colour bar.
    values
        uint8, shape (rows, columns): :data:`NO_TILE` where there is no tile, else 1 + score * 254.
    origin_px0
        Level-0 position of the top-left corner of value (0, 0).
    cell_px0
        Width and height of a value in level-0 pixels.
    palette
        Colours of the scores 0 to 1, uint8, shape (256, 3).
    threshold
        Scores below it are not coloured at first.
    """

    kind: str
    title: str
    legend: tuple[str, ...]
    values: NDArray[np.uint8]
    origin_px0: Point
    cell_px0: Scale
    palette: NDArray[np.uint8]
    threshold: float = 0.0


@dataclass(frozen=True)
class TileTable:
    """The tiles of a slide; row i is tile i.

    Attributes
    ----------
    columns
        Name to values, each of shape (N,): ``x``, ``y`` int32 (top-left, level-0 pixels), the others float32.
    origin_px0, stride_px0, footprint_px0
        Corner of the grid, step between tiles and size of a tile, level-0 pixels.
    patch_size, patch_mpp
        Pixels of a tile as the model sees it, and their µm.
    """

    columns: dict[str, NDArray[Any]]
    origin_px0: Point
    stride_px0: Scale
    footprint_px0: Scale
    patch_size: Size
    patch_mpp: Scale

    def __len__(self) -> int:
        return len(self.columns["x"])


@dataclass(frozen=True)
class Detail:
    """Everything but pixels of one slide.

    Attributes
    ----------
    tiles
        None where the slide is not tiled.
    layers
        Maps that can be shown.
    outlines
        Annotated lesions: each a list of rings (the first is the outer one), each ring of shape (n, 2), level-0
        pixels. None where the slide has no annotation.
    notes
        What is missing or odd, for people.
    facts
        Further lines about the slide: name and value.
    """

    tiles: TileTable | None = None
    layers: tuple[Layer, ...] = ()
    outlines: tuple[tuple[NDArray[np.float64], ...], ...] | None = None
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Download:
    """A file that the page offers.

    Attributes
    ----------
    name
        File name the browser saves it under, unique among those offered together.
    title
        What it is.
    path
        Where it lies; never told to the page.
    """

    name: str
    title: str
    path: Path


class Collection(Protocol):
    """Slides to look at. Safe to use from several threads."""

    @property
    def title(self) -> str:
        """What the page is headed."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the positive one last; empty where there is no model."""
        ...

    @property
    def reviews(self) -> Path | None:
        """Where reviews are kept; None where none can be."""
        ...

    @property
    def model_id(self) -> str:
        """Which model the scores are of; empty where there is none."""
        ...

    def entries(self) -> list[Entry]:
        """The worklist as it is now, in the order of the manifest."""
        ...

    def open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        """An open slide, for a ``with`` block; KeyError where there is no such slide."""
        ...

    def detail(self, slide_id: str) -> Detail:
        """Tiles, maps and outlines of a slide; KeyError where there is no such slide."""
        ...

    def patch(self, slide_id: str, tile: int) -> RGB:
        """Pixels of one tile as the model sees them; IndexError where there is no such tile."""
        ...

    def downloads(self, slide_id: str | None = None) -> list[Download]:
        """Files of a slide, or of all of them together, that are there now."""
        ...

    def close(self) -> None:
        """Close all slides."""
        ...


def eight_bits(score: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Scores 0-1 as the values of a :class:`Layer`; NaN is no tile.

    >>> eight_bits(np.array([np.nan, 0.0, 0.5, 1.0]))
    array([  0,   1, 128, 255], dtype=uint8)
    """
    known = np.isfinite(score)
    values = np.zeros(score.shape, np.uint8)
    values[known] = 1 + np.rint(np.clip(score[known], 0, 1) * 254).astype(np.uint8)
    return values
