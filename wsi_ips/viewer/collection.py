"""What the viewer shows, as plain values: a worklist, and tiles, maps and outlines of each slide.

:mod:`wsi_ips.pipeline.run_viewer` provides them for a run, :class:`wsi_ips.viewer.slide_files.SlideFiles` for files.
The server knows only these types, and the page only what they say: no name of a map appears in the JavaScript.
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
    """A row of the worklist."""

    slide_id: str  # Identity; the page can ask for a slide only by it
    version: str  # Changes with the slide's file; part of tile URLs, so that browsers do not show old tiles
    state: str = ""  # state, reason: State of the slide and its reason
    reason: str = ""
    label: str = ""  # label, split: As in the manifest; empty where not known
    split: str = ""
    # Probability of the positive class for the whole slide; None where it was not predicted
    probability: float | None = None
    predicted: str = ""  # Predicted class
    tiles: int | None = None  # tiles, tissue_mm2: Number of tiles, and tissue area
    tissue_mm2: float | None = None


@dataclass(frozen=True)
class Look:
    """How the page shows a layer."""

    kind: str  # Identity among the layers of a slide
    title: str  # title, legend: Name, and texts along the colour bar, lowest first
    legend: tuple[str, ...]
    # Opacity of a score s before the slider: ``strength[0] + strength[1] * s ** strength[2]``
    strength: tuple[float, float, float] = (0, 1, 1)
    threshold: float = 0.0  # Scores below it are not coloured at first
    lowest: int = 1  # Lowest 8-bit value that is ever coloured: 2 leaves out scores of exactly 0
    comparable: bool = True  # Whether scores mean the same on every slide; otherwise they are ranks within the slide
    from_model: bool = False  # Whether the model made the scores; the first such layer is shown first
    verb: str = "Coloured"  # Word before the area of the coloured cells
    draws: str = ""  # What is drawn with the layer: ``outlines`` of lesions, the ``grid`` of tiles, or nothing
    key: int = 0  # Digit that selects the layer on the keyboard


@dataclass(frozen=True)
class Layer:
    """A map of one number over a slide, in 8 bits; the browser colours it."""

    look: Look  # How it is shown
    # uint8, shape (rows, columns): :data:`NO_TILE` where there is no tile, else 1 + score * 254
    values: NDArray[np.uint8]
    origin_px0: Point  # Level-0 position of the top-left corner of value (0, 0)
    cell_px0: Scale  # Width and height of a value in level-0 pixels
    palette: NDArray[np.uint8]  # Colours of the scores 0 to 1, uint8, shape (256, 3)

    @property
    def kind(self) -> str:
        """Identity among the layers of a slide."""
        return self.look.kind


@dataclass(frozen=True)
class Column:
    """How a column of the tile table is shown beside the pointer and in the gallery."""

    name: str  # name, title: Name in the table, and title
    title: str
    # ``number`` (0-1), ``rank`` (0-1, shown as top %), ``share`` (0-1, shown as % of the tile) or ``times``
    shown_as: str
    ranked: bool = False  # Whether the gallery can list its highest tiles


@dataclass(frozen=True)
class TileTable:
    """The tiles of a slide; row i is tile i."""

    # Values by name, each of shape (N,): ``x``, ``y`` int32 (top-left, level-0 pixels), the others float32
    columns: dict[str, NDArray[Any]]
    shown: tuple[Column, ...]  # Columns to show, in this order
    # origin_px0, stride_px0, footprint_px0: Corner of the grid, step between tiles and size of a tile, level-0 pixels
    origin_px0: Point
    stride_px0: Scale
    footprint_px0: Scale
    patch_size: Size  # patch_size, patch_mpp: Size of a tile as the model sees it, px, and its µm/px
    patch_mpp: Scale

    def __len__(self) -> int:
        return len(self.columns["x"])


@dataclass(frozen=True)
class Detail:
    """Everything about a slide except its pixels."""

    tiles: TileTable | None = None  # None where the slide is not tiled
    layers: tuple[Layer, ...] = ()  # Maps that can be shown
    # Annotated lesions, each a list of rings (the first is the outer one) of shape (n, 2), level-0 pixels; None where
    # the slide has no annotation
    outlines: tuple[tuple[NDArray[np.float64], ...], ...] | None = None
    notes: tuple[str, ...] = ()  # Messages about what is missing or unusual
    facts: tuple[tuple[str, str], ...] = ()  # Further lines about the slide: name and value


@dataclass(frozen=True)
class Download:
    """A file that the page offers."""

    name: str  # File name for the browser, unique among the files that are offered together
    title: str  # Text of the link
    path: Path  # Path of the file; never sent to the page


class Collection(Protocol):
    """Slides to view. Implementations are thread-safe."""

    @property
    def title(self) -> str:
        """Title of the page."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the positive one last; empty without a model."""
        ...

    @property
    def reviews(self) -> Path | None:
        """File of the reviews; None where slides cannot be reviewed."""
        ...

    @property
    def model_id(self) -> str:
        """Identity of the model that made the scores; empty without one."""
        ...

    def entries(self) -> list[Entry]:
        """Return the current worklist, in manifest order."""
        ...

    def open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        """Open a slide for a ``with`` block; raises KeyError for an unknown slide."""
        ...

    def detail(self, slide_id: str) -> Detail:
        """Return tiles, maps and outlines of a slide; raises KeyError for an unknown slide."""
        ...

    def patch(self, slide_id: str, tile: int) -> RGB:
        """Return the pixels of a tile as the model sees them; raises IndexError for an unknown tile."""
        ...

    def downloads(self, slide_id: str | None = None) -> list[Download]:
        """Return the existing files of a slide, or of the whole collection; raises KeyError for an unknown slide."""
        ...

    def close(self) -> None:
        """Close all slides."""
        ...


def eight_bits(score: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert scores 0-1 to the values of a :class:`Layer`; NaN becomes :data:`NO_TILE`.

    >>> eight_bits(np.array([np.nan, 0.0, 0.5, 1.0]))
    array([  0,   1, 128, 255], dtype=uint8)
    """
    known = np.isfinite(score)
    values = np.zeros(score.shape, np.uint8)
    values[known] = 1 + np.rint(np.clip(score[known], 0, 1) * 254).astype(np.uint8)
    return values
