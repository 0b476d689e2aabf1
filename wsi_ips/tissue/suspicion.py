"""Remarks on tissue masks that a person should check, and how urgent they are. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from wsi_ips.geometry import Scale
from wsi_ips.tissue.filters import EIGHT_CONNECTED
from wsi_ips.tissue.mask import TissueMask

LITTLE_MM2 = 0.5
MOST_OF_SLIDE = 0.9
MANY_PIECES = 60
CUT_MM = 1.0  # length of tissue along the border of the slide that is not worth a remark
MUCH_PEN = 0.02
MUCH_BLACK = 0.05  # shares of the slide


def remarks_on(tissue: TissueMask, mpp: Scale) -> list[str]:
    """Return what is odd about a mask, worst first; ``mpp`` is µm per level-0 pixel."""
    return sorted(_found(tissue, mpp), key=lambda text: -_weight(text))


def suspicion(remarks: Sequence[str]) -> int:
    """Return how urgently a slide should be checked; 0 where there is no remark, more is worse."""
    return sum(_weight(text) for text in remarks)


# Beginning of each remark and its weight; others weigh 5
WEIGHTS = (
    ("no tissue", 100),
    ("almost everything", 60),
    ("no rung", 50),
    ("black", 40),
    ("little tissue", 30),
    ("cut by the border", 20),
    ("many pieces", 15),
    ("pen", 10),
)


def _weight(text: str) -> int:
    return next((weight for start, weight in WEIGHTS if text.startswith(start)), 5)


def _found(tissue: TissueMask, mpp: Scale) -> list[str]:
    mask, area_mm2 = tissue.mask, tissue.area_um2(mpp) / 1e6
    share = float(mask.mean())
    texts: list[str] = []
    if share == 0:
        texts.append("no tissue found")
    elif share > MOST_OF_SLIDE:
        texts.append(f"almost everything is tissue ({share:.0%})")
    elif area_mm2 < LITTLE_MM2:
        texts.append(f"little tissue ({area_mm2:.3g} mm²)")
    pieces = ndimage.label(mask, structure=EIGHT_CONNECTED)[1]
    if pieces > MANY_PIECES:
        texts.append(f"many pieces ({pieces})")
    cut_mm = _cut_mm(tissue, mpp)
    if 0 < share <= MOST_OF_SLIDE and cut_mm > CUT_MM:
        texts.append(f"cut by the border of the slide ({cut_mm:.1f} mm)")
    texts += _about_method(tissue)
    if tissue.seen is not None:
        pen, black = float(tissue.seen.pen.mean()), tissue.seen.black_share
        if black > MUCH_BLACK:
            texts.append(f"black over {black:.0%} of the slide: fluorescence, ink or a scan gap")
        if pen > MUCH_PEN:
            texts.append(f"pen over {pen:.0%} of the slide")
    return texts


def _about_method(tissue: TissueMask) -> list[str]:
    if tissue.rung == "bounded" or (tissue.passed and tissue.passed[-1].startswith(f"{tissue.rung} ")):
        return ["no rung of the segmentation could be trusted: " + "; ".join(tissue.passed)]
    if tissue.rung == "stain":
        return ["found by density alone, not by colour: " + "; ".join(tissue.passed)]
    return []


def _cut_mm(tissue: TissueMask, mpp: Scale) -> float:
    """Return the length along which tissue touches the border of the slide."""
    mask, step = tissue.mask, tissue.px0_per_mask_px.times(mpp)
    along_x = np.count_nonzero(mask[0]) + np.count_nonzero(mask[-1])
    along_y = np.count_nonzero(mask[:, 0]) + np.count_nonzero(mask[:, -1])
    return float(along_x * step.x + along_y * step.y) / 1000
