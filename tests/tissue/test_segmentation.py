"""Segmentation: stained tissue yes; glass, ink, dust and pinholes no; sizes in µm."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from wsi_ips.geometry import Scale, Size
from wsi_ips.slides import open_slide, read_thumbnail
from wsi_ips.tissue.segmentation import TissueRules, segment_tissue

THUMBNAIL = Scale(8.0, 8.0)


def glass(width=300, height=220, seed=0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-3, 4, (height, width, 1))
    return np.clip(np.array([241, 239, 242]) + noise, 0, 255).astype(np.uint8)


def segment(pixels: np.ndarray, mpp=THUMBNAIL, **changes):
    height, width = pixels.shape[:2]
    return segment_tissue(pixels, mpp=mpp, px0_size=Size(width * 16, height * 16), rules=TissueRules(**changes))


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
    ("name", "mpp", "low", "high"),
    [
        ("tcga-lung-rgb.png", 8.0, 0.6, 1.0),
        ("wsi-blue-pen.png", 100.0, 0.15, 0.45),
        ("tcga-green-pen.png", 8.0, 0.85, 1.0),
        ("diagnostic-slide-thumb-rgb.png", 40.0, 0.4, 0.65),
    ],
)
def test_real_thumbnails_give_a_believable_share(real_data, name, mpp, low, high):
    pixels = np.asarray(Image.open(real_data / "thumbnails" / name).convert("RGB"))
    share = segment(pixels, Scale(mpp, mpp)).mask.mean()
    assert low < share < high


def test_the_mask_says_which_rung_found_it_and_why_not_the_ones_before():
    pixels = glass()
    pixels[40:150, 60:200] = (205, 160, 200)
    plain = segment(pixels)
    assert plain.rung == "otsu"
    assert plain.passed == ()
    pixels[40:150, 60:200] = (110, 60, 130)
    dark = segment(pixels)
    assert dark.rung == "adaptive"
    assert any("above 0.2" in reason for reason in dark.passed)
    assert dark.method.startswith("adaptive: saturation >")


def test_tissue_without_colour_is_found_by_density():
    pixels = glass()
    pixels[40:150, 60:200] = (170, 168, 171)
    found = segment(pixels)
    assert found.rung == "stain"
    assert found.mask[100, 100]
    assert not found.mask[10, 10]


def test_one_method_only_where_it_is_asked_for():
    pixels = glass()
    pixels[40:150, 60:200] = (170, 168, 171)
    assert not segment(pixels, method="otsu").mask.any()
    assert segment(pixels, method="stain").mask.any()


def test_pale_tissue_beside_dark_is_not_lost():
    pixels = glass()
    pixels[40:180, 20:110] = (120, 50, 140)
    pixels[40:180, 180:280] = (228, 206, 224)
    assert segment(pixels).mask[110, 230]


@pytest.mark.parametrize("tint", [(240, 234, 212), (205, 204, 208)])
def test_tinted_and_grey_glass_is_no_tissue(tint):
    pixels = np.clip(glass().astype(int) - 240 + np.array(tint), 0, 255).astype(np.uint8)
    assert segment(pixels).mask.mean() < 0.01
    pixels[40:150, 60:200] = (190, 120, 180)
    assert segment(pixels).mask.mean() == pytest.approx(110 * 140 / (220 * 300), rel=0.03)


@pytest.mark.parametrize("ink", [(20, 110, 60), (200, 20, 30), (40, 60, 150), (35, 35, 40)])
def test_ink_is_tissue_where_it_lies_on_tissue_and_nowhere_else(ink):
    pixels = glass()
    pixels[40:180, 100:280] = (190, 120, 180)
    pixels[100:115, 20:200] = ink
    found = segment(pixels)
    assert found.seen.pen[107, 50]
    assert found.seen.pen[107, 150]
    assert found.mask[107, 150]
    assert not found.mask[100:115, 20:80].any()


def test_a_blue_stain_is_no_blue_pen():
    pixels = glass()
    pixels[40:180, 40:260] = (60, 90, 190)
    found = segment(pixels)
    assert found.mask[100, 100]
    assert not found.seen.pen.any()


def test_lumina_count_as_tissue():
    pixels = glass()
    pixels[40:160, 40:160] = (190, 120, 180)
    pixels[60:75, 60:75] = (241, 239, 242)
    assert segment(pixels).mask[67, 67]


def test_a_net_of_walls_is_fat_and_a_step_between_stitched_fields_is_not():
    net = glass()
    net[40:180:7, 40:260] = net[40:180, 40:260:7] = (226, 200, 220)
    assert segment(net).mask[60:160, 60:240].mean() > 0.9
    stitched = np.full((220, 300, 3), 255, np.uint8)
    stitched[:, :150] = glass()[:, :150]
    stitched[40:150, 20:90] = (190, 120, 180)
    assert not segment(stitched).mask[:, 100:].any()


def test_a_real_slide_has_the_tissue_one_sees(real_data):
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as reader:
        pixels, mpp = read_thumbnail(reader, 8.0)
        size = reader.info.size_px0
    mask = segment_tissue(pixels, mpp=mpp, px0_size=size)
    assert 0.3 < mask.mask.mean() < 0.6


def test_a_picture_that_is_all_tissue_is_not_split_into_pale_and_dark():
    pixels = glass()
    pixels[:, :] = (225, 168, 208)
    pixels[:, :150] = (150, 60, 140)
    assert segment(pixels).mask.mean() > 0.95
