"""Segmentation: stained tissue yes; glass, ink, dust and pinholes no; sizes in µm."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from wsi_ips.geometry import Scale, Size
from wsi_ips.slides import open_slide, read_thumbnail
from wsi_ips.tissue import segment_tissue

SETTINGS = {
    "smoothing_um": 16.0,
    "closing_um": 32.0,
    "min_saturation": 0.06,
    "min_area_um2": 40_000.0,
    "max_hole_um2": 20_000.0,
}

THUMBNAIL = Scale(8.0, 8.0)


def glass(width=300, height=220, seed=0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-3, 4, (height, width, 1))
    return np.clip(np.array([241, 239, 242]) + noise, 0, 255).astype(np.uint8)


def segment(pixels: np.ndarray, mpp=THUMBNAIL, **changes):
    height, width = pixels.shape[:2]
    return segment_tissue(pixels, mpp=mpp, px0_size=Size(width * 16, height * 16), **(SETTINGS | changes))


@pytest.mark.parametrize("colour", [(190, 120, 180), (225, 195, 220), (110, 60, 130)])
def test_pale_and_dark_tissue_is_found(colour):
    pixels, truth = glass(), np.zeros((220, 300), bool)
    truth[40:150, 60:200] = True
    pixels[truth] = colour
    found = segment(pixels).mask
    assert (found & truth).sum() / (found | truth).sum() > 0.97


def test_nothing_but_glass_is_no_tissue():
    assert not segment(glass()).mask.any()
    assert not segment(np.full((50, 70, 3), 255, np.uint8)).mask.any()


def test_black_ink_and_scan_gaps_are_no_tissue():
    pixels = glass()
    pixels[50:100, 50:250] = (12, 10, 30)
    assert not segment(pixels).mask.any()


def test_small_pieces_go_and_small_holes_are_filled_by_area():
    pixels = glass()
    pixels[40:160, 40:160] = (190, 120, 180)
    pixels[60:75, 60:75] = (241, 239, 242)  # 120 µm square: 14 400 µm², filled
    pixels[100:130, 100:130] = (241, 239, 242)  # 240 µm square: 57 600 µm², stays
    pixels[10:20, 250:260] = (190, 120, 180)  # 80 µm square: 6 400 µm², dropped
    mask = segment(pixels).mask
    assert mask[67, 67]
    assert not mask[115, 115]
    assert not mask[5:25, 245:265].any()


def test_the_same_areas_at_another_scale():
    pixels = glass()
    pixels[10:20, 250:260] = (190, 120, 180)
    assert segment(pixels, Scale(40.0, 40.0)).mask.any()


def test_tissue_at_the_edge_of_the_picture_stays():
    pixels = glass()
    pixels[:60, :80] = (190, 120, 180)
    assert segment(pixels).mask[0, 0]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("tcga-lung-rgb.png", 0.6, 0.9), ("wsi-blue-pen.png", 0.15, 0.45), ("tcga-green-pen.png", 0.85, 1.0)],
)
def test_real_thumbnails_give_a_believable_share(real_data, name, low, high):
    pixels = np.asarray(Image.open(real_data / "thumbnails" / name).convert("RGB"))
    share = segment(pixels).mask.mean()
    assert low < share < high


def test_a_real_slide_has_the_tissue_one_sees(real_data):
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as reader:
        pixels, mpp = read_thumbnail(reader, 8.0)
        size = reader.info.size_px0
    mask = segment_tissue(pixels, mpp=mpp, px0_size=size, **SETTINGS)
    assert 0.3 < mask.mask.mean() < 0.6


def test_a_picture_that_is_all_tissue_is_not_split_into_pale_and_dark():
    pixels = glass()
    pixels[:, :] = (225, 168, 208)
    pixels[:, :150] = (150, 60, 140)
    assert segment(pixels).mask.mean() > 0.95
