"""All that is said of a set of predictions, in one place: numbers only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsi_ips.evaluation.classes import TaskEvaluation
from wsi_ips.evaluation.cohort import SlideEvaluation
from wsi_ips.evaluation.froc import Froc
from wsi_ips.evaluation.localisation import TileFigures


@dataclass(frozen=True)
class SizeRecall:
    """Tumour slides by the size of their largest lesion.

    Attributes
    ----------
    size
        ``ITC``, ``micro`` or ``macro``.
    slides
        How many.
    selected
        Those of which a tumour tile is among the tiles kept.
    pointed
        Those whose highest tile is tumour.
    """

    size: str
    slides: int
    selected: int
    pointed: int


@dataclass(frozen=True)
class Localisation:
    """Where the score map is right, over the slides whose tumour is known; None where it cannot be computed.

    Attributes
    ----------
    lesions_by_peaks, lesions_by_components
        FROC of CAMELYON16, detections picked in two ways.
    lesions_given
        The same of detections from elsewhere.
    tile_probability, tile_attention
        Figures of both scores over all tiles; attention times the number of tiles of its slide.
    pointing
        Share of tumour slides whose highest tile is tumour.
    selection_recall
        Share of tumour slides of which a tumour tile is among those kept.
    by_size
        The same two by the size of the largest lesion.
    false_alarm_mm2
        Tissue called tumour per slide without, mean, mm².
    effective_tiles
        Number of tiles that attention is spread over, mean of all slides here.
    tumour_slides, other_slides
        What it rests on: slides with a tumour tile, and slides without tumour.
    """

    lesions_by_peaks: Froc | None = None
    lesions_by_components: Froc | None = None
    lesions_given: Froc | None = None
    tile_probability: TileFigures | None = None
    tile_attention: TileFigures | None = None
    pointing: float | None = None
    selection_recall: float | None = None
    by_size: tuple[SizeRecall, ...] = ()
    false_alarm_mm2: float | None = None
    effective_tiles: float | None = None
    tumour_slides: int = 0
    other_slides: int = 0


@dataclass(frozen=True)
class PatientStage:
    """Stage of a patient in truth and prediction, of :data:`wsi_ips.evaluation.staging.STAGES`."""

    patient_id: str
    stage: str
    predicted: str


@dataclass(frozen=True)
class Patients:
    """Stages of patients by their lymph nodes.

    Attributes
    ----------
    patients
        In the order of their ids.
    kappa
        Quadratically weighted; None where it is undefined.
    """

    patients: tuple[PatientStage, ...]
    kappa: float | None

    @property
    def right(self) -> int:
        """Patients whose stage is right."""
        return sum(patient.stage == patient.predicted for patient in self.patients)


@dataclass(frozen=True)
class Evaluation:
    """All that could be computed; the rest is None, with the reason in ``notes``.

    Attributes
    ----------
    slides
        The label's last class against all others.
    localisation, patients
        See there.
    tasks
        Figures of each task with more than two classes or beside the label.
    tissue
        What segmentation and tiling left of the annotated lesions of all slides: ``lesions``, ``lost``,
        ``in_tissue``, ``in_tiles``.
    notes
        What could not be computed, or was left out, and why.
    """

    slides: SlideEvaluation | None
    localisation: Localisation | None = None
    patients: Patients | None = None
    tasks: tuple[TaskEvaluation, ...] = ()
    tissue: dict[str, float] | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For ``evaluation.json``."""
        found = _plain(asdict(self))
        assert isinstance(found, dict)
        return found


def _plain(value: Any) -> Any:
    """Arrays as lists."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray) else value
