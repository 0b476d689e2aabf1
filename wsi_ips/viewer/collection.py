"""What the viewer shows, as plain values: a worklist, and tiles, maps and outlines of each slide.

:mod:`wsi_ips.pipeline.view` provides them for a run, :class:`wsi_ips.viewer.slide_files.SlideFiles` for single files.
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
    """A row of the worklist.

    Attributes
    ----------
    slide_id
        Identity; the page can ask for a slide only by it.
    version
        Changes with the slide's file; part of tile URLs, so that browsers do not show old tiles.
    state, reason
        State of the slide and its reason.
    label, split
        As in the manifest; empty where not known.
    probability
        Probability of the positive class for the whole slide; None where it was not predicted.
    predicted
        Predicted class.
    tiles, tissue_mm2
        Number of tiles, and tissue area.
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
class Look:
    """How the page shows a layer.

    Attributes
    ----------
    kind
        Identity among the layers of a slide.
    title, legend
        Name, and texts along the colour bar, lowest first.
    strength
        Opacity of a score s before the slider: ``strength[0] + strength[1] * s ** strength[2]``.
    threshold
        Scores below it are not coloured at first.
    lowest
        Lowest 8-bit value that is ever coloured: 2 leaves out scores of exactly 0.
    comparable
        Whether scores mean the same on every slide; otherwise they are ranks within the slide.
    from_model
        Whether the model made the scores; the first such layer is shown first.
    verb
        Word before the area of the coloured cells.
    draws
        What is drawn with the layer: ``outlines`` of lesions, the ``grid`` of tiles, or nothing.
    key
        Digit that selects the layer on the keyboard.
    """

    kind: str
    title: str
    legend: tuple[str, ...]
    strength: tuple[float, float, float] = (0, 1, 1)
    threshold: float = 0.0
    lowest: int = 1
    comparable: bool = True
    from_model: bool = False
    verb: str = "Coloured"
    draws: str = ""
    key: int = 0


@dataclass(frozen=True)
class Layer:
    """A map of one number over a slide, in 8 bits; the browser colours it.

    Attributes
    ----------
    look
        How it is shown.
    values
        uint8, shape (rows, columns): :data:`NO_TILE` where there is no tile, else 1 + score * 254.
    origin_px0
        Level-0 position of the top-left corner of value (0, 0).
    cell_px0
        Width and height of a value in level-0 pixels.
    palette
        Colours of the scores 0 to 1, uint8, shape (256, 3).
    """

    look: Look
    values: NDArray[np.uint8]
    origin_px0: Point
    cell_px0: Scale
    palette: NDArray[np.uint8]

    @property
    def kind(self) -> str:
        """Identity among the layers of a slide."""
        return self.look.kind


@dataclass(frozen=True)
class Column:
    """How a column of the tile table is shown beside the pointer and in the gallery.

    Attributes
    ----------
    name, title
        Name in the table, and title.
    shown_as
        ``number`` (0-1), ``rank`` (0-1, shown as top %), ``share`` (0-1, shown as % of the tile) or ``times``.
    ranked
        Whether the gallery can list its highest tiles.
    """

    name: str
    title: str
    shown_as: str
    ranked: bool = False


@dataclass(frozen=True)
class TileTable:
    """The tiles of a slide; row i is tile i.

    Attributes
    ----------
    columns
        Values by name, each of shape (N,): ``x``, ``y`` int32 (top-left, level-0 pixels), the others float32.
    shown
        Columns to show, in this order.
    origin_px0, stride_px0, footprint_px0
        Corner of the grid, step between tiles and size of a tile, level-0 pixels.
    patch_size, patch_mpp
        Size of a tile as the model sees it, px, and its µm/px.
    """

    columns: dict[str, NDArray[Any]]
    shown: tuple[Column, ...]
    origin_px0: Point
    stride_px0: Scale
    footprint_px0: Scale
    patch_size: Size
    patch_mpp: Scale

    def __len__(self) -> int:
        return len(self.columns["x"])


@dataclass(frozen=True)
class Detail:
    """Everything about a slide except its pixels.

    Attributes
    ----------
    tiles
        None where the slide is not tiled.
    layers
        Maps that can be shown.
    outlines
        Annotated lesions, each a list of rings (the first is the outer one) of shape (n, 2), level-0 pixels; None
        where the slide has no annotation.
    notes
        Messages about what is missing or unusual.
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
        File name for the browser, unique among the files that are offered together.
    title
        Text of the link.
    path
        Path of the file; never sent to the page.
    """

    name: str
    title: str
    path: Path


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
