"""Every error the package raises on purpose, with one root.

::

    WsiIpsError                    root: catches all of them
    ├── RecipeError                a recipe: unknown key, value out of range, unreadable YAML
    ├── ManifestError              a manifest: missing column, duplicate slide_id, bad row
    ├── SlideError                 a slide file; the message names the slide
    │   ├── SlideNotFoundError     no file at the path
    │   ├── UnsupportedSlideError  no reader opens it
    │   │   └── UnsupportedPixelsError  the file is valid, but of a kind that is not read (16-bit, grey, JPEG-LS ...)
    │   ├── ResolutionError        no scale, or no level fine enough for the requested µm/px
    │   └── RegionReadError        opened, but a region could not be read
    ├── AnnotationError            an annotation file, or annotated tumour that lies in no tile
    │   └── AnnotationClassError   it has areas of no known class
    ├── TileIndexError             a stored tile index: missing, damaged, or of another schema
    ├── FeaturesError              stored features: missing, damaged, or imported ones that do not match tiles or slide
    ├── ScoresError                a stored score table: missing, damaged, or of another schema
    ├── HandoffError               a hand-off package whose files do not contain what was scored
    ├── CheckpointError            a checkpoint: missing, damaged, made for other classes
    ├── DeviceMemoryError          GPU memory cannot hold the activations of a single patch
    ├── TrainingError              training cannot start or continue (only one class, for example)
    │   └── DivergedError          loss, gradient or scores are no longer finite
    ├── RunDatabaseError           ``run.sqlite`` of a run folder cannot be read or written
    ├── RunLockedError             another command writes into the run folder
    ├── StorageError               a disk is full, read-only, or its quota is used up; stops the command, not a slide
    ├── ClusterError               the Dask cluster cannot be reached, has gone, or cannot run this program
    ├── ViewerError                the viewer cannot start (page library missing, port in use) or cannot store a review
    └── EvaluationError            metrics that cannot be computed from the given numbers

Each is also a built-in exception, so code that does not know this package can catch it. A message names the slide, row
or key, says what is wrong, and says what to do.

:func:`fenced` alone catches everything: a bad slide affects only that slide, never the cohort. A full disk is no fault
of a slide and passes through.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class WsiIpsError(Exception):
    """Root of all errors raised on purpose by wsi_ips.

    Attributes
    ----------
    is_told
        Whether another process of the same training reports it to the user.
    slide_id
        Name of the slide in its manifest, where the error is about one and the name is known.
    """

    is_told = False

    def __init__(self, *args: object, slide_id: str | None = None) -> None:
        super().__init__(*args)
        self.slide_id = slide_id


class RecipeError(WsiIpsError, ValueError):
    """A recipe cannot be read or holds a key or value that is not allowed."""


class ManifestError(WsiIpsError, ValueError):
    """A manifest cannot be read or holds a row that is not allowed."""


class SlideError(WsiIpsError):
    """A slide cannot be used."""


class SlideNotFoundError(SlideError, FileNotFoundError):
    """There is no file at a slide's path."""


class UnsupportedSlideError(SlideError, ValueError):
    """No reader opens the file."""


class UnsupportedPixelsError(UnsupportedSlideError):
    """The file is valid, but its pixels are not 8-bit RGB, or stored in a form that is not read."""


class ResolutionError(SlideError, ValueError):
    """A slide has no trusted scale, or no level fine enough for the requested µm/px."""


class RegionReadError(SlideError, OSError):
    """A region of an opened slide could not be read."""


class AnnotationError(WsiIpsError, ValueError):
    """An annotation file cannot be understood, or its tumour lies in no tile."""


class AnnotationClassError(AnnotationError):
    """An annotation has areas of no known class, so what is tumour is not known."""


class TileIndexError(WsiIpsError, ValueError):
    """A stored tile index is missing, damaged or of another schema."""


class FeaturesError(WsiIpsError, ValueError):
    """Stored features are missing or damaged, or imported ones do not match the tiles or the slide."""


class ScoresError(WsiIpsError, ValueError):
    """A stored score table is missing, damaged or of another schema."""


class HandoffError(WsiIpsError, ValueError):
    """A file of a hand-off package, read back, does not contain what was scored and where."""


class CheckpointError(WsiIpsError, ValueError):
    """A checkpoint is missing, damaged or was made for other classes."""


class DeviceMemoryError(WsiIpsError, MemoryError):
    """Device memory cannot hold the activations of a single patch."""


class TrainingError(WsiIpsError, RuntimeError):
    """Training cannot start or continue."""


class DivergedError(TrainingError):
    """Loss, gradient or scores of a training are no longer finite."""


class ClusterError(WsiIpsError, RuntimeError):
    """The Dask cluster cannot be reached, has gone, or cannot run this program."""


class RunDatabaseError(WsiIpsError, OSError):
    """The database of a run folder cannot be read or written."""


class RunLockedError(WsiIpsError, RuntimeError):
    """Another command writes into the run folder."""


class StorageError(WsiIpsError, OSError):
    """A file cannot be written: the disk is full or read-only, or a quota is used up."""


class EvaluationError(WsiIpsError, ValueError):
    """Metrics cannot be computed from the given numbers."""


class ViewerError(WsiIpsError, RuntimeError):
    """The viewer cannot start, or cannot store a review."""


@dataclass(frozen=True)
class Failure:
    """Reason why a slide failed; plain text that can be sent between processes."""

    reason: str  # one line; the message of our own errors, which says what to do
    traceback: str  # full text for the log file

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return an exception as plain text."""
        text = str(error) if isinstance(error, WsiIpsError) else f"{type(error).__name__}: {error}"
        return cls(" ".join(text.split()), "".join(traceback.format_exception(error)))


def fenced(work: Callable[[], T]) -> T | Failure:
    """Return the result of ``work``, or why it failed: one bad slide never stops a cohort, a `StorageError` does."""
    try:
        return work()
    except StorageError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        return Failure.of(error)


def few(names: Sequence[str], most: int = 10) -> str:
    """Join names for a message; of a long list only the first, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
