"""Masks a person should look at."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.geometry import Scale
from wsi_ips.tissue.mask import TissueMask, remarks_on, suspicion

MPP = Scale(0.5, 0.5)


def tissue(mask: np.ndarray, **changes: object) -> TissueMask:
    return TissueMask(mask, Scale(16, 16), 0.1, "drawn", **changes)


def good() -> np.ndarray:
    mask = np.zeros((300, 400), bool)
    mask[50:250, 60:300] = True
    return mask


def crumbs() -> np.ndarray:
    mask = np.zeros((300, 400), bool)
    mask[10:290:15, 10:390:15] = True
    return mask.repeat(4, 0).repeat(4, 1)


def cut() -> np.ndarray:
    mask = good()
    mask[50:250, :60] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "changes", "remark"),
    [
        (np.zeros((30, 40), bool), {}, "no tissue"),
        (np.ones((300, 400), bool), {}, "almost everything"),
        (crumbs(), {}, "many pieces"),
        (cut(), {}, "cut by the border"),
        (good(), {"rung": "bounded", "passed": ("otsu: no",)}, "no rung"),
        (good(), {"rung": "stain", "passed": ("otsu: no",)}, "found by density"),
    ],
)
def test_what_is_odd_is_said(mask, changes, remark):
    remarks = remarks_on(tissue(mask, **changes), MPP)
    assert remarks[0].startswith(remark)
    assert suspicion(remarks) > 0


def test_a_good_mask_has_no_remark():
    assert remarks_on(tissue(good(), rung="otsu"), MPP) == []
    assert suspicion([]) == 0


def test_no_tissue_is_worse_than_many_pieces():
    none, pieces = (remarks_on(tissue(m), MPP) for m in (np.zeros((9, 9), bool), crumbs()))
    assert suspicion(none) > suspicion(pieces)
