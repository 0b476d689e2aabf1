"""Tissue recall: literal shares of literal lesions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely

from wsi_ips.annotations import read_asap, tumour_fraction
from wsi_ips.geometry import Scale
from wsi_ips.tiles.recall import NO_TILE, NotAnalysed, longest_diameter_um, not_analysed, size_class, tissue_recall
from wsi_ips.tissue.mask import TissueMask

MPP = Scale(0.5, 0.25)


def mask_left_of(x_px0: int) -> TissueMask:
    mask = np.zeros((100, 200), bool)
    mask[:, : x_px0 // 16] = True
    return TissueMask(mask, Scale(16, 16), 0.1, "drawn")


def test_shares_in_tissue_and_in_tiles():
    lesion = shapely.box(320, 160, 640, 480)
    boxes = np.array([[256, 160, 128, 320], [256, 160, 192, 320]])  # the second overlaps the first
    found = tissue_recall([lesion], mask_left_of(480), boxes, mpp=MPP).lesions[0]
    assert found.in_tissue == pytest.approx(0.5, abs=0.01)
    assert found.in_tiles == pytest.approx(0.4)
    assert found.area_um2 == pytest.approx(320 * 0.5 * 320 * 0.25)
    assert found.diameter_um == pytest.approx(math.hypot(160, 80))
    assert (found.size_class, found.lost_to) == ("ITC", "tiling")


def test_what_lies_off_the_tissue_or_the_slide_is_lost_to_segmentation():
    lesions = [shapely.box(700, 0, 900, 100), shapely.box(-400, 0, -100, 100), shapely.box(100, 100, 101, 101)]
    recall = tissue_recall(lesions, mask_left_of(480), np.array([[0, 0, 512, 512]]), mpp=MPP)
    assert [lesion.lost_to for lesion in recall.lesions] == ["segmentation", "segmentation", ""]
    assert recall.lost == 2
    assert recall.in_tiles == pytest.approx(1 / (200 * 100 + 300 * 100 + 1))


def test_a_lesion_is_lost_to_the_flag_that_excluded_its_tiles():
    lesion = shapely.box(64, 64, 192, 192)
    boxes = np.array([[0, 0, 96, 256]])
    excluded = {"pen": np.array([[96, 0, 96, 256]]), "blur": np.empty((0, 4))}
    found = tissue_recall([lesion], mask_left_of(480), boxes, excluded, mpp=MPP).lesions[0]
    assert found.in_tiles == pytest.approx(0.25)
    assert found.lost_to == "pen"
    assert tissue_recall([lesion], mask_left_of(480), boxes, mpp=MPP).lesions[0].lost_to == "tiling"


def test_tissue_in_no_tile_is_measured_by_reason_and_every_pixel_counts_once():
    kept = np.array([[0, 0, 160, 1600], [80, 0, 160, 1600]])  # overlapping: the first 15 of 30 columns
    excluded = {"pen": np.array([[160, 0, 160, 1600]]), "blur": np.array([[240, 0, 160, 800]])}
    found = not_analysed(mask_left_of(480), kept, excluded, mpp=MPP)
    column_mm2 = 16 * 0.5 * 1600 * 0.25 / 1e6
    assert found.mm2 == pytest.approx(
        {"pen": 5 * column_mm2, "blur": 2.5 * column_mm2, NO_TILE: 7.5 * column_mm2}, abs=1e-4
    )
    assert found.share == pytest.approx(0.5)
    assert found.share_flagged == pytest.approx(0.25, abs=0.001)
    assert str(found) == "50.0% of the tissue (pen 0.016 mm², blur 0.008 mm², no tile 0.024 mm²)"
    assert NotAnalysed.of_stored(found.share, found.stored) == found
    whole = not_analysed(mask_left_of(480), np.array([[0, 0, 480, 1600]]), {}, mpp=MPP)
    assert (whole.share, whole.mm2, whole.stored) == (0.0, {}, "")
    assert not_analysed(mask_left_of(0), kept, {}, mpp=MPP) is None


def test_small_lesions_between_the_tiles_are_no_error_where_others_are_in_tiles():
    inside, small, large = shapely.box(0, 0, 100, 100), shapely.box(200, 0, 220, 20), shapely.box(200, 100, 400, 300)
    tiles, tile_um2 = np.array([[0, 0, 50, 100]]), 100 * 100 * 0.125

    def unseen(*lesions):
        return [le.area_um2 for le in tissue_recall(lesions, mask_left_of(480), tiles, mpp=MPP).unseen(tile_um2)]

    assert unseen(inside, small) == []
    assert unseen(inside, small, large) == [200 * 200 * 0.125]
    assert unseen(small) == [20 * 20 * 0.125]
    assert unseen(inside) == []


def test_no_annotation_has_no_recall():
    recall = tissue_recall([], mask_left_of(480), np.empty((0, 4)), mpp=MPP)
    assert math.isnan(recall.in_tissue)
    assert recall.lost == 0
    assert recall.unseen(1.0) == ()


@pytest.mark.parametrize(("um", "name"), [(199, "ITC"), (200, "micro"), (2000, "micro"), (2001, "macro")])
def test_size_classes(um, name):
    assert size_class(um) == name


def test_real_lesions_on_a_hundred_thousand_tiles_are_exact(real_data):
    region = read_asap(real_data / "annotations" / "tumor_004_from_ncrf.xml").tumour
    left, top, right, bottom = region.bounds
    side = max(right - left, bottom - top) / 320
    x, y = (v.ravel() for v in np.meshgrid(left + side * np.arange(320), top + side * np.arange(320)))
    boxes = np.column_stack([x, y, np.full(x.size, side), np.full(x.size, side)])
    fraction = tumour_fraction(region, boxes)
    assert fraction.sum() * side**2 == pytest.approx(region.area, rel=1e-5)
    assert longest_diameter_um(region, Scale(0.25, 0.25)) > 0
