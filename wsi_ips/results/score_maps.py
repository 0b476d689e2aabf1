"""Registry of score maps: how each is computed from a slide's scores, drawn, explained and exported.

To add one, write a function that takes :class:`TileScores` and returns a value per tile, and add an entry to
:data:`SCORE_MAPS`. Recipes, pictures, sidecars, OME-TIFF, DICOM and the viewer read everything from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ScoresError
from wsi_ips.registry import Entry, Registry

OWN_CODES = "99WSIIPS"  # DICOM coding scheme for concepts that the standard does not define
LESION_MAP = "probability"  # lesions are outlined on this map: `handoff.threshold` is a probability


class TileScores(Protocol):
    """Scores of a slide that maps may use; :class:`wsi_ips.inference.slide_scores.SlideScores` provides it."""

    @property
    def attention(self) -> NDArray[np.float64]:
        """Attention of each tile, shape (N,); sums to 1."""

    @property
    def positive_probability(self) -> NDArray[np.float32]:
        """Probability of the positive class of each tile alone, shape (N,)."""


def probability(scores: TileScores) -> NDArray[np.float32]:
    """Return the probability of the positive class of each tile alone, shape (N,)."""
    return np.asarray(scores.positive_probability, np.float32)


def attention(scores: TileScores) -> NDArray[np.float32]:
    """Return the attention of each tile as a rank within the slide, shape (N,)."""
    return attention_rank(scores.attention)


def attention_rank(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the rank of each tile within its slide, 0 (least) to 1 (most); equal attention gets equal rank."""
    from scipy import stats

    if not np.isfinite(values).all():
        raise ScoresError("scores are not finite; predict the slide again")
    if len(values) == 1:
        return np.ones(1, np.float32)
    return np.asarray((stats.rankdata(values) - 1) / (len(values) - 1), np.float32)


@dataclass(frozen=True)
class ScoreMap(Entry):
    """A score map; ``home`` names the function from :class:`TileScores` to a value per tile."""

    legend: str = ""  # meaning of the colours, below the picture and in its sidecar
    marks: tuple[str, ...] = ("0", "0.25", "0.5", "0.75", "1")  # evenly spaced along the colour bar, lowest first
    colours: str = "viridis"  # Matplotlib colour map for values 0 to 1
    comparable: bool = True  # values mean the same on every slide; otherwise they are ranks within the slide, 0 to 1
    opacity_power: int = 1  # the opacity of a value is proportional to this power of it
    first_threshold: float = 0.0  # the viewer colours values from here on when it opens
    explanation: str = ""  # of the numbers in DICOM, <= 64 characters; ``{class_name}``: the positive class
    # DICOM code of the quantity: value, coding scheme, meaning
    concept: tuple[str, str, str] = ("tile-score", OWN_CODES, "Tile score")

    @property
    def picture_title(self) -> str:
        """Title of a picture of the map."""
        return f"{self.title} map" + ("" if self.comparable else ", relative within this slide")

    def values(self, scores: TileScores) -> NDArray[np.float32]:
        """Return the value of each tile, 0-1, shape (N,)."""
        return np.asarray(self.load()(scores), np.float32)


SCORE_MAPS = Registry(
    "score map",
    (
        ScoreMap(
            "probability",
            "wsi_ips.results.score_maps:probability",
            "probability of the positive class, each tile alone; comparable between slides",
            "Tumour probability",
            legend="tumour probability of each tile alone",
            explanation="probability of {class_name}, each tile alone",
            concept=("122157", "DCM", "Probability"),
        ),
        ScoreMap(
            "attention",
            "wsi_ips.results.score_maps:attention",
            "rank of a tile's attention within its slide; not comparable between slides",
            "Attention",
            legend="attention rank, relative within this slide",
            marks=("least", "median", "most"),
            colours="cividis",
            comparable=False,
            opacity_power=2,
            first_threshold=0.5,
            explanation="attention, rank within the slide",
            concept=("attention-rank", OWN_CODES, "Attention, rank within the slide"),
        ),
    ),
    group="wsi_ips.score_maps",
)
