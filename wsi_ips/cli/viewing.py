"""What ``wsi-ips view`` is pointed at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsi_ips.cli.console import out
from wsi_ips.errors import SlideNotFoundError, ViewerError
from wsi_ips.manifest import discover_slides
from wsi_ips.provenance import atomic_write_text
from wsi_ips.slides.source import is_url
from wsi_ips.viewer import Collection, ReviewStore, SlideFiles

RUN_MARKS = ("run.json", "slides.csv", "scores.zarr")
"""One of them makes a folder a run folder."""
RECIPES = (".yaml", ".yml")


def collection_of(targets: Sequence[str]) -> Collection:
    """Slides to look at.

    Parameters
    ----------
    targets
        One run folder or recipe, or slides: files, folders of slides, URLs.

    Raises
    ------
    WsiIpsError
        A run cannot be read, a file is not there, or a run is mixed with other things.
    """
    runs = [target for target in targets if _is_run(target)]
    if runs and len(targets) > 1:
        raise ViewerError(f"{runs[0]} is a run: look at one run at a time, without further slides")
    if runs:
        from wsi_ips.pipeline.run import Run
        from wsi_ips.pipeline.view import RunCollection, view_recipe

        return RunCollection(Run.open(view_recipe(Path(runs[0]))))
    return SlideFiles([path for target in targets for path in _slides(target)])


def write_reviews(collection: Collection, path: Path) -> None:
    """Write the newest review of every slide as CSV.

    Raises
    ------
    ViewerError
        There are no reviews but of runs.
    """
    if collection.reviews is None:
        raise ViewerError("--export-reviews: only a run has reviews; give its folder or recipe")
    atomic_write_text(path, ReviewStore(collection.reviews).csv())
    out.print(f"reviews: {path}", soft_wrap=True)


def _is_run(target: str) -> bool:
    if is_url(target):
        return False
    path = Path(target)
    return path.suffix in RECIPES or (path.is_dir() and any((path / mark).exists() for mark in RUN_MARKS))


def _slides(target: str) -> list[Path | str]:
    if is_url(target):
        return [target]
    path = Path(target)
    if path.is_dir():
        return [Path(str(found)) for found in discover_slides(path)["path"]]
    if not path.exists():
        raise SlideNotFoundError(f"{target}: no such slide, folder or recipe")
    return [path]
