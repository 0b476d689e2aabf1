"""What the report shows, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsi_ips.evaluation import Evaluation
from wsi_ips.results.figures import History

Outcome = Literal["", "missed", "false alarm"]


@dataclass(frozen=True)
class Figure:
    """One figure of the run.

    Attributes
    ----------
    name, value
        As they are shown.
    note
        What it rests on, in a few words.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class TopTile:
    """One tile of a gallery.

    Attributes
    ----------
    jpeg
        The patch.
    probability
        Of the positive class, for this tile alone.
    x_px0, y_px0
        Top-left corner, level-0 pixels.
    """

    jpeg: bytes
    probability: float
    x_px0: int
    y_px0: int


@dataclass(frozen=True)
class SlideEntry:
    """One slide of the worklist.

    Attributes
    ----------
    slide_id, state, reason
        Identity and state.
    label, split
        As in the manifest, empty where not given.
    probability
        Of the positive class; None where the slide was not predicted.
    predicted
        What it is called.
    tiles, tissue_mm2
        What was analysed.
    overlays
        JPEG pictures: probability, attention; empty where not drawn, or where the page would become too large. Some
        1000 px on their longer side are worth enlarging; the letters on them grow with the picture.
    top
        Tiles with the highest probability.
    tile_um
        Side of a tile, µm.
    thumbnail
        Small JPEG for the worklist.
    outcome
        ``missed``: labelled positive, not called, of the split that is reported on; ``false alarm``: the opposite.
    positive
        Whether its label is positive; None where it is not known.
    """

    slide_id: str
    state: str
    reason: str
    label: str
    split: str
    probability: float | None
    predicted: str
    tiles: int | None
    tissue_mm2: float | None
    overlays: tuple[bytes, ...] = ()
    top: tuple[TopTile, ...] = ()
    tile_um: float = 0.0
    thumbnail: bytes | None = None
    outcome: Outcome = ""
    positive: bool | None = None


@dataclass(frozen=True)
class Loss:
    """Slides that did not come further.

    Attributes
    ----------
    reason
        Why.
    slides
        Their ids.
    """

    reason: str
    slides: tuple[str, ...]


@dataclass(frozen=True)
class FlowStep:
    """One step on the way of the cohort.

    Attributes
    ----------
    name, note
        What holds for the slides that are left.
    slides
        How many are left.
    lost
        Those that were left behind since the step before.
    """

    name: str
    slides: int
    lost: tuple[Loss, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class RecallRow:
    """Annotated lesions of one size class.

    Attributes
    ----------
    size
        ``ITC``, ``micro``, ``macro``, or ``all``.
    lesions, lost_to_segmentation, lost_to_tiling
        How many.
    in_tissue, in_tiles
        Share of their area, 0-1.
    """

    size: str
    lesions: int
    lost_to_segmentation: int
    lost_to_tiling: int
    in_tissue: float
    in_tiles: float


@dataclass(frozen=True)
class LostLesion:
    """A lesion of which less than half is in tiles; its place in level-0 pixels."""

    slide_id: str
    x_px0: int
    y_px0: int
    diameter_um: float
    size: str
    lost_to: str


@dataclass(frozen=True)
class CardSection:
    """A part of the model card: title and sentences."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows.

    Attributes
    ----------
    title, positive_class, model_id
        Of the run.
    split
        Slides that the figures rest on.
    figures
        Headline figures.
    slides
        All slides of the cohort.
    facts
        Name and value of what made the run.
    recipe
        The recipe as YAML.
    evaluation
        All figures; None where nothing is labelled.
    flow
        From the manifest to the figures.
    history
        The training; None where the model was trained elsewhere.
    recall, lost_lesions
        What segmentation and tiling left of the annotated lesions.
    card
        The model card.
    """

    title: str
    positive_class: str
    model_id: str
    split: str
    figures: tuple[Figure, ...]
    slides: tuple[SlideEntry, ...]
    facts: tuple[tuple[str, str], ...]
    recipe: str
    evaluation: Evaluation | None = None
    flow: tuple[FlowStep, ...] = ()
    history: History | None = None
    recall: tuple[RecallRow, ...] = ()
    lost_lesions: tuple[LostLesion, ...] = ()
    card: tuple[CardSection, ...] = ()
