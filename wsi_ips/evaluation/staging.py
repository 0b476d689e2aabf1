"""Sizes of metastases and the stage of a patient by the rule of CAMELYON17: numbers in, numbers out.

Bandi et al., IEEE TMI 2019: sizes after the TNM classification, the stage from five slides of a patient, agreement by
quadratically weighted kappa.
"""

from __future__ import annotations

from collections.abc import Sequence
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
"""What a lymph node holds, by its largest metastasis."""

NODE_LABELS: tuple[str, ...] = get_args(NodeLabel)
STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
"""Stages from best to worst."""

MICRO_MM, MACRO_MM = 0.2, 2.0
MOST_OF_PN1, MOST_OF_PN2 = 3, 9


def node_label(longest_mm: float) -> NodeLabel:
    """What a node holds whose largest metastasis has this longest diameter, mm; 0 is none.

    Below 0.2 mm isolated tumour cells, to 2 mm a micrometastasis, above a macrometastasis.
    """
    if longest_mm <= 0:
        return "negative"
    if longest_mm < MICRO_MM:
        return "itc"
    return "micro" if longest_mm <= MACRO_MM else "macro"


def largest_part_mm(called: NDArray[np.bool_], cell_um: Scale) -> float:
    """Longest diameter of the largest connected part of a map, mm; 0 where nothing is called.

    From corner to corner of cells: as coarse as the map is, and never less than a cell's diagonal.

    Parameters
    ----------
    called
        Cells that are tumour, bool, shape (rows, columns); 8-connected.
    cell_um
        Width and height of a cell.
    """
    labels, count = ndimage.label(called, structure=np.ones((3, 3)))
    longest = 0.0
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = np.nonzero(labels[box] == number)
        corners = np.concatenate([np.stack([columns + x, rows + y], 1) for x in (0, 1) for y in (0, 1)])
        longest = max(longest, longest_diameter_um(shapely.MultiPoint(corners), cell_um))
    return longest / 1000 if count else 0.0


def pn_stage(nodes: Sequence[NodeLabel]) -> str:
    """Stage of a patient from the labels of the lymph nodes.

    Isolated tumour cells never make a node positive.

    Raises
    ------
    EvaluationError
        No node, a label that is none, or more positive nodes than the rule knows.
    """
    odd = [node for node in nodes if node not in NODE_LABELS]
    if odd or not nodes:
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
    """Quadratically weighted kappa of stages.

    Parameters
    ----------
    truth, predicted
        A stage per patient, of :data:`STAGES`.

    Raises
    ------
    EvaluationError
        Different lengths, no patient, a stage that is none, or nothing to agree on (all of one and the same stage).
    """
    if len(truth) != len(predicted) or not truth:
        raise EvaluationError(
            f"{len(truth)} true and {len(predicted)} predicted stages; one of each per patient is needed"
        )
    odd = sorted({stage for stage in (*truth, *predicted) if stage not in STAGES})
    if odd:
        raise EvaluationError(f"stages {', '.join(odd)}: use {', '.join(STAGES)}")
    if len({*truth, *predicted}) == 1:
        raise EvaluationError(
            f"all {len(truth)} patients have stage {truth[0]}, in truth and prediction: kappa is undefined"
        )
    return float(metrics.cohen_kappa_score(truth, predicted, labels=list(STAGES), weights="quadratic"))
