"""Sizes of metastases and the pN stage of a patient by the rule of CAMELYON17.

Bandi et al., IEEE TMI 2019: sizes after the TNM classification, the stage from five slides of a patient, agreement by
quadratically weighted kappa.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from sklearn import metrics

from wsi_ips.errors import EvaluationError
from wsi_ips.geometry import Scale
from wsi_ips.tiles.recall import longest_diameter_um

NodeLabel = Literal["negative", "itc", "micro", "macro"]
NODE_LABELS: tuple[str, ...] = get_args(NodeLabel)  # what a lymph node holds, by its largest metastasis
STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")  # from best to worst
MICRO_MM, MACRO_MM = 0.2, 2.0
MOST_OF_PN1, MOST_OF_PN2 = 3, 9  # most positive nodes of these stages


@dataclass(frozen=True)
class Node:
    """A lymph node (one slide) of a patient; truth and prediction are of :data:`NODE_LABELS`."""

    patient_id: str
    truth: str
    predicted: str


@dataclass(frozen=True)
class PatientStage:
    """True and predicted stage of a patient, of :data:`STAGES`."""

    patient_id: str
    stage: str
    predicted: str


@dataclass(frozen=True)
class Patients:
    """Stages of patients by their lymph nodes."""

    patients: tuple[PatientStage, ...]  # in the order of their ids
    kappa: float | None  # quadratically weighted kappa; None where it is undefined

    @property
    def right(self) -> int:
        """Number of patients with the right stage."""
        return sum(patient.stage == patient.predicted for patient in self.patients)


def stage_patients(nodes: Iterable[Node], notes: list[str]) -> Patients:
    """Stage patients by all their lymph nodes; the reason for a missing kappa is added to ``notes``."""
    by_patient: dict[str, list[Node]] = {}
    for node in nodes:
        by_patient.setdefault(node.patient_id, []).append(node)
    patients = tuple(
        PatientStage(name, pn_stage([n.truth for n in own]), pn_stage([n.predicted for n in own]))
        for name, own in sorted(by_patient.items())
    )
    try:
        return Patients(patients, quadratic_kappa([p.stage for p in patients], [p.predicted for p in patients]))
    except EvaluationError as error:
        notes.append(f"no kappa: {error}")
        return Patients(patients, None)


def node_label(longest_mm: float) -> NodeLabel:
    """Return the label of a node whose largest metastasis has this longest diameter in mm; 0 is none.

    Below 0.2 mm isolated tumour cells, up to 2 mm a micrometastasis, above it a macrometastasis.
    """
    if longest_mm <= 0:
        return "negative"
    if longest_mm < MICRO_MM:
        return "itc"
    return "micro" if longest_mm <= MACRO_MM else "macro"


def largest_part_mm(called: NDArray[np.bool_], cell_um: Scale) -> float:
    """Return the longest diameter of the largest connected part of a map, mm; 0 where nothing is called.

    Tumour cells ``called``, bool, shape (rows, columns), are 8-connected. Measured between corners of cells: as coarse
    as the map is, and never less than a cell's diagonal.
    """
    labels, _ = ndimage.label(called, structure=np.ones((3, 3)))
    longest = 0.0
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = np.nonzero(labels[box] == number)
        corners = np.concatenate([np.stack([columns + x, rows + y], 1) for x in (0, 1) for y in (0, 1)])
        longest = max(longest, longest_diameter_um(shapely.MultiPoint(corners), cell_um))
    return longest / 1000


def pn_stage(nodes: Sequence[str]) -> str:
    """Return the stage of a patient from the labels of the lymph nodes; isolated tumour cells make no node positive."""
    if not nodes or not set(nodes) <= set(NODE_LABELS):
        raise EvaluationError(f"node labels {list(nodes)}: give one or more of {', '.join(NODE_LABELS)}")
    positive = sum(node in ("micro", "macro") for node in nodes)
    if positive == 0:
        return "pN0(i+)" if "itc" in nodes else "pN0"
    if "macro" not in nodes:
        return "pN1mi"
    if positive > MOST_OF_PN2:
        raise EvaluationError(f"{positive} positive nodes; the rule of CAMELYON17 ends at {MOST_OF_PN2}")
    return "pN1" if positive <= MOST_OF_PN1 else "pN2"


def quadratic_kappa(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Return the quadratically weighted kappa of stages, one per patient; raises where it is undefined."""
    if len({*truth, *predicted}) == 1:
        raise EvaluationError(
            f"all {len(truth)} patients have stage {truth[0]}, in truth and prediction: kappa is undefined"
        )
    return float(metrics.cohen_kappa_score(truth, predicted, labels=list(STAGES), weights="quadratic"))
