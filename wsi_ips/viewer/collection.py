"""Content of the viewer as plain values: a worklist, and tiles, maps and outlines of each slide.

:mod:`wsi_ips.pipeline.run_viewer` provides them for a run, :class:`SlideFiles` for slide files without a run.
The server knows only these types, and the page only their content: no name of a map appears in the JavaScript.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import Failure, ViewerError, fenced
from wsi_ips.geometry import Point, Scale, Size
from wsi_ips.provenance import fingerprint
from wsi_ips.slides import RGB, SlidePool, SlideReader, open_slide
from wsi_ips.slides.source import is_url, slide_name

NO_TILE = 0  # value of a layer where there is no tile; scores 0-1 are 1-255


@dataclass(frozen=True)
class Entry:
    """A row of the worklist."""

    slide_id: str  # the page can ask for a slide only by it
    version: str  # changes with the slide's file; part of tile URLs, so that browsers do not show old tiles
    state: str = ""
    reason: str = ""
    label: str = ""  # as in the manifest; empty where not known
    split: str = ""  # likewise
    probability: float | None = None  # of the positive class for the whole slide; None where it was not predicted
    predicted: str = ""  # class
    tiles: int | None = None
    tissue_mm2: float | None = None


@dataclass(frozen=True)
class Look:
    """Presentation of a layer on the page."""

    kind: str  # identity among the layers of a slide
    title: str
    legend: tuple[str, ...]  # texts along the colour bar, lowest first
    strength: tuple[float, float, float] = (0, 1, 1)  # (a, b, c): opacity a + b * score ** c before the slider
    threshold: float = 0.0  # scores below it are not coloured at first
    lowest: int = 1  # lowest 8-bit value that is ever coloured: 2 leaves out scores of exactly 0
    comparable: bool = True  # scores mean the same on every slide; otherwise they are ranks within the slide
    from_model: bool = False  # the model made the scores; the first such layer is shown first
    verb: str = "Coloured"  # word before the area of the coloured cells
    draws: str = ""  # with the layer: ``outlines`` of lesions, the ``grid`` of tiles, or nothing
    key: int = 0  # digit that selects the layer on the keyboard


@dataclass(frozen=True)
class Layer:
    """A map of one number over a slide, in 8 bits; the browser colours it."""

    look: Look
    values: NDArray[np.uint8]  # (rows, columns): :data:`NO_TILE` where there is no tile, else 1 + score * 254
    origin_px0: Point  # top-left corner of value (0, 0), level-0 pixels
    cell_px0: Scale  # size of a value, level-0 pixels
    palette: NDArray[np.uint8]  # (256, 3), colours of the scores 0 to 1

    @property
    def kind(self) -> str:
        """Identity among the layers of a slide."""
        return self.look.kind


@dataclass(frozen=True)
class Column:
    """Presentation of a column of the tile table beside the pointer and in the gallery."""

    name: str  # in the table
    title: str
    shown_as: str  # number (0-1), rank (0-1, shown as top %), share (0-1, shown as % of the tile) or times
    ranked: bool = False  # the gallery can list its highest tiles


@dataclass(frozen=True)
class TileTable:
    """The tiles of a slide; row i is tile i."""

    columns: dict[str, NDArray[Any]]  # each (N,): x, y int32 (top-left, level-0 pixels), the others float32
    shown: tuple[Column, ...]  # columns to show, in this order
    origin_px0: Point  # corner of the grid, level-0 pixels
    stride_px0: Scale  # step between tiles, level-0 pixels
    footprint_px0: Scale  # size of a tile, level-0 pixels
    patch_size: Size  # size of a tile as the model sees it, px
    patch_mpp: Scale  # its µm/px

    def __len__(self) -> int:
        return len(self.columns["x"])


@dataclass(frozen=True)
class Detail:
    """Everything about a slide except its pixels."""

    tiles: TileTable | None = None  # None where the slide is not tiled
    layers: tuple[Layer, ...] = ()
    # annotated lesions, each a list of rings (the outer one first) of shape (n, 2), level-0 pixels; None: not annotated
    outlines: tuple[tuple[NDArray[np.float64], ...], ...] | None = None
    notes: tuple[str, ...] = ()  # what is missing or unusual
    facts: tuple[tuple[str, str], ...] = ()  # further lines about the slide: name and value


@dataclass(frozen=True)
class Download:
    """A file that the page offers."""

    name: str  # file name for the browser, unique among the files that are offered together
    title: str  # text of the link
    path: Path  # never sent to the page


class Collection(Protocol):
    """Slides to view. Implementations are thread-safe."""

    @property
    def title(self) -> str:
        """Title of the page."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the positive one last; empty without a model."""

    @property
    def reviews(self) -> Path | None:
        """File of the reviews; None where slides cannot be reviewed."""

    @property
    def model_id(self) -> str:
        """Identity of the model that made the scores; empty without one."""

    def entries(self) -> list[Entry]:
        """Return the current worklist, in manifest order."""

    def open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        """Open a slide for a ``with`` block; raises KeyError for an unknown slide."""

    def detail(self, slide_id: str) -> Detail:
        """Return tiles, maps and outlines of a slide; raises KeyError for an unknown slide."""

    def patch(self, slide_id: str, tile: int) -> RGB:
        """Return the pixels of a tile as the model sees them; raises IndexError for an unknown tile."""

    def downloads(self, slide_id: str | None = None) -> list[Download]:
        """Return the existing files of a slide, or of the whole collection; raises KeyError for an unknown slide."""

    def close(self) -> None:
        """Close all slides."""


def eight_bits(score: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Convert scores 0-1 to the values of a :class:`Layer`; NaN becomes :data:`NO_TILE`.

    >>> eight_bits(np.array([np.nan, 0.0, 0.5, 1.0]))
    array([  0,   1, 128, 255], dtype=uint8)
    """
    known = np.isfinite(score)
    values = np.zeros(score.shape, np.uint8)
    values[known] = 1 + np.rint(np.clip(score[known], 0, 1) * 254).astype(np.uint8)
    return values


class SlideFiles:
    """A :class:`Collection` of slide files or URLs, to view slides without a run.

    The id of a slide is its file name; equal names get a number.
    """

    title = "Slides"
    classes: tuple[str, ...] = ()
    reviews: Path | None = None
    model_id = ""

    def __init__(self, paths: Sequence[Path | str]) -> None:
        if not paths:
            raise ViewerError("nothing to show: give a run folder, a recipe or slides")
        self._paths: dict[str, Path | str] = {}
        seen: Counter[str] = Counter()
        for path in paths:
            name = slide_name(path)
            seen[name] += 1
            self._paths[name if seen[name] == 1 else f"{name} ({seen[name]})"] = path
        self._pool = SlidePool()

    def entries(self) -> list[Entry]:
        """Return the worklist; a slide that cannot be opened is ``failed``, with the reason."""
        return [self._entry(slide_id, path) for slide_id, path in self._paths.items()]

    def open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        """Open a slide for a ``with`` block."""
        path = self._paths[slide_id]
        return self._pool.lease(slide_id, lambda cache: open_slide(path, cache=cache))

    def detail(self, slide_id: str) -> Detail:
        """Return an empty detail: only the slide is known."""
        if slide_id not in self._paths:
            raise KeyError(slide_id)
        return Detail()

    def patch(self, slide_id: str, tile: int) -> RGB:  # noqa: ARG002 - part of the protocol
        """Raise IndexError: there are no tiles."""
        raise IndexError(tile)

    def downloads(self, slide_id: str | None = None) -> list[Download]:
        """Return no files."""
        if slide_id is not None and slide_id not in self._paths:
            raise KeyError(slide_id)
        return []

    def close(self) -> None:
        """Close all slides."""
        self._pool.close()

    def _entry(self, slide_id: str, path: Path | str) -> Entry:
        def look() -> None:
            with self.open(slide_id):
                pass

        found = fenced(look)
        state, reason = ("failed", found.reason) if isinstance(found, Failure) else ("ok", "")
        return Entry(slide_id, slide_version(path), state=state, reason=reason)


def slide_version(path: Path | str) -> str:
    """Return a text that changes with the path, size or time of a slide's file, without reading it."""
    if is_url(path):
        return fingerprint(str(path))
    try:
        facts = Path(path).stat()
    except OSError:
        return fingerprint(str(path))
    return fingerprint(str(path), facts.st_size, facts.st_mtime_ns)
