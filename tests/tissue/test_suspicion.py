"""Masks a person should look at."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from wsi_ips.geometry import Scale, Size
from wsi_ips.tissue.artifacts import excluding
from wsi_ips.tissue.mask import Seen, TissueMask, remarks_on, suspicion, unsuited
from wsi_ips.tissue.segmentation import segment_tissue

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


def noisy(pixels, deviation=2.0) -> np.ndarray:
    values = np.asarray(pixels, np.float32) + np.random.default_rng(0).normal(0, deviation, (400, 600, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


def lit() -> np.ndarray:
    """Return nuclei that shine blue on black."""
    bright = np.zeros((400, 600, 3), np.float32)
    bright[..., 2] = 900 * ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(400, 600)), 2)
    return noisy(np.clip(bright, 0, 255))


def stripes(*colours: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colours)[np.arange(600) // 20 % len(colours)], (400, 600, 3))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (lit(), "fluorescence"),
        (np.zeros((400, 600, 3), np.uint8), "fluorescence"),
        (noisy(np.full((400, 600, 3), 128), 3.0), "no colour"),
        (stripes((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)).astype(np.uint8), "drawing"),
        (noisy(stripes((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)), 4.0), "haematoxylin, eosin or DAB"),
    ],
    ids=["fluorescence", "black", "grey", "drawing", "colours"],
)
def test_what_is_no_stained_section_is_unsuited(pixels, reason):
    assert reason in unsuited(segment_tissue(pixels, mpp=Scale(8, 8), px0_size=Size(600, 400)), pixels)


@pytest.mark.parametrize("colour", [(190, 120, 180), (120, 50, 140), (226, 208, 232), (150, 100, 60), (150, 165, 205)])
def test_sections_in_stain_are_suited_and_dab_gets_a_remark(colour):
    pixels = np.full((400, 600, 3), 241.0)
    pixels[80:300, 100:400], pixels[120:200, 150:300] = colour, (150, 165, 205)
    pixels = noisy(pixels, 5.0)
    found = segment_tissue(pixels, mpp=Scale(8, 8), px0_size=Size(600, 400))
    assert unsuited(found, pixels) == ""
    assert any("immunohistochemistry" in text for text in remarks_on(found, MPP)) == (colour == (150, 100, 60))


def test_a_flag_that_would_take_much_of_the_tissue_takes_nothing_unless_the_ink_is_on_glass():
    flags, share = np.repeat(np.uint8([1, 0]), [20, 80]), np.ones(100, np.float32)
    pen = np.zeros((300, 400), bool)
    pen[60:100, 60:300] = True  # within the tissue of `good`
    plane = np.zeros((300, 400), np.uint8)
    on_tissue = tissue(good(), seen=Seen((plane,) * 3, pen, pen & False, 0.0))
    assert excluding(("pen",), flags, share, on_tissue)[0] == 0
    assert "20% of the tissue" in excluding(("pen",), flags, share, on_tissue)[1][0]
    assert excluding(("pen",), flags[16:], share[16:], on_tissue) == (1, ())
    pen[:50] = True
    assert excluding(("pen",), flags, share, on_tissue) == (1, ())
