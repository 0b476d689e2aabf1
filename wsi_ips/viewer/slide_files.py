"""A collection of slide files, to view slides without a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from wsi_ips.errors import SlideError, ViewerError
from wsi_ips.provenance import fingerprint
from wsi_ips.slides import RGB, SlidePool, SlideReader, TileCache, open_slide
from wsi_ips.slides.source import is_url, slide_name
from wsi_ips.viewer.collection import Detail, Download, Entry


class SlideFiles:
    """A :class:`wsi_ips.viewer.collection.Collection` of slide files.

    Parameters
    ----------
    paths
        Files or URLs. The id of a slide is its file name; equal names get a number.

    Raises
    ------
    ViewerError
        No slide is given.
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
        return [self._entry(slide_id) for slide_id in self._paths]

    def open(self, slide_id: str) -> AbstractContextManager[SlideReader]:
        """Open a slide for a ``with`` block."""
        path = self._paths[slide_id]

        def opened(cache: TileCache) -> SlideReader:
            return open_slide(path, cache=cache)

        return self._pool.lease(slide_id, opened)

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

    def _entry(self, slide_id: str) -> Entry:
        path = self._paths[slide_id]
        try:
            with self.open(slide_id):
                pass
        except SlideError as error:
            return Entry(slide_id, slide_version(path), state="failed", reason=str(error))
        return Entry(slide_id, slide_version(path), state="ok")


def slide_version(path: Path | str) -> str:
    """Return a text that changes with the path, size or time of a slide's file, without reading it."""
    if is_url(path):
        return fingerprint(str(path))
    try:
        facts = Path(path).stat()
    except OSError:
        return fingerprint(str(path))
    return fingerprint(str(path), facts.st_size, facts.st_mtime_ns)
