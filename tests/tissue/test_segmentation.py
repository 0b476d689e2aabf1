"""Segmentation: stained tissue yes; glass, ink, dust and pinholes no; sizes in µm."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from wsi_ips.errors import RecipeError
from wsi_ips.geometry import Scale, Size
from wsi_ips.slides import open_slide, read_thumbnail
from wsi_ips.tissue.filters import dilated
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


def textured(colour, shape=(220, 300), seed=1) -> np.ndarray:
    """Return tissue of a colour whose density varies from nucleus to nucleus."""
    from scipy import ndimage

    varies = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.8)
    grey = 1 + 0.12 * varies / varies.std()
    return np.clip(241 * (np.array(colour) / 241) ** grey[..., None], 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("main", "other"),
    [
        ((150, 100, 60), (150, 165, 205)),
        ((170, 60, 70), (110, 140, 200)),
        ((190, 90, 160), (150, 160, 210)),
        ((215, 150, 190), (60, 50, 48)),
        ((215, 150, 190), (110, 120, 180)),
        ((215, 150, 190), (80, 38, 78)),
    ],
    ids=["DAB", "trichrome", "PAS", "melanin", "bluish haematoxylin", "dark"],
)
def test_a_minority_stain_is_no_ink(main, other):
    pixels = glass()
    pixels[30:190, 30:270] = textured(main)[30:190, 30:270]
    pixels[60:150, 30:120] = textured(other)[60:150, 30:120]  # at the edge of the tissue too
    found = segment(pixels)
    assert not found.seen.pen.any()
    assert found.mask[60:150, 40:120].mean() > 0.97


@pytest.mark.parametrize("ink", [(20, 110, 60), (200, 20, 30), (60, 100, 200), (20, 18, 14)])
def test_ink_wholly_on_tissue_is_found_by_the_density_it_adds(ink):
    pixels = glass()
    pixels[20:200, 20:280] = textured((190, 120, 180))[20:200, 20:280]
    rows, columns = np.mgrid[:220, :300]
    mark = np.hypot(rows - 80, columns - 90) < 30
    mark[130:160, 100:220] = True
    pixels[mark] = pixels[mark] * (np.array(ink) / 241)
    pen = segment(pixels).seen.pen
    assert pen[mark].mean() > 0.9
    assert not (pen & ~dilated(mark, 3)).any()


@pytest.mark.parametrize("ink", [(20, 110, 60), (200, 20, 30), (40, 60, 150), (35, 35, 40)])
@pytest.mark.parametrize("size", [0.15, 1.0])
def test_ink_is_found_beside_little_tissue_and_much(ink, size):
    pixels = glass()
    rows, columns = slice(100, 100 + int(100 * size)), slice(100, 100 + int(180 * size))
    pixels[rows, columns] = textured((190, 120, 180))[rows, columns]
    pixels[20:34, 10:290] = ink
    found = segment(pixels)
    assert found.seen.pen[22:32, 12:288].mean() > 0.9
    assert not (found.seen.pen & found.mask).any()


@pytest.mark.parametrize("drawn", ["line", "band"])
def test_the_edge_of_a_coverslip_is_no_tissue(drawn):
    pixels = glass(600, 440)
    if drawn == "line":
        pixels[60:64] = (120, 118, 119)
    else:
        pixels[60:90, :] = (232, 226, 212)
    assert not segment(pixels).mask.any()
    pixels[200:300, 150:400] = textured((190, 120, 180), (100, 250))
    assert segment(pixels).mask.sum() == pytest.approx(100 * 250, rel=0.05)


def test_a_straight_biopsy_that_is_cut_by_the_border_is_tissue():
    pixels = glass(600, 440)
    pixels[200:230, :400] = textured((190, 120, 180), (30, 400))
    assert segment(pixels).mask.sum() == pytest.approx(30 * 400, rel=0.1)


@pytest.mark.parametrize("slide", [7, 9, 10, 16, 23])
def test_real_dark_tissue_is_no_pen(real_data, slide):
    path = real_data.parent / "cases" / "dark-tissue" / f"node_{slide:03d}.tif"
    if not path.exists():
        pytest.skip(f"no {path}")
    found = segment(np.asarray(Image.open(path).convert("RGB").reduce(2)), Scale(7.8, 7.8))
    assert not found.seen.pen.any()


@pytest.mark.parametrize(
    ("name", "mpp", "missed"),
    [
        ("histoqc_black_pen", 8.0, 0.02),
        ("histoqc_green_pen", 20.0, 0.02),
        ("rtlucassen_blue_ink", 20.0, 0.1),
        ("slideflow_red_and_green_pen", 40.0, 0.2),  # its small spots lie on the tissue
        ("tupac004_red_ring", 30.0, 0.05),
        ("tupac_blue_marks", 30.0, 0.05),
        ("tupac_teal_ring", 30.0, 0.05),
    ],
)
def test_pen_on_real_overviews_is_found_and_no_tissue_beside_it(real_data, name, mpp, missed):
    folder = real_data / "thumbnails_more"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    found = segment(np.asarray(Image.open(folder / f"{name}.png").convert("RGB")), Scale(mpp, mpp))
    ink = np.asarray(Image.open(folder / "truth" / f"{name}_pen.png").convert("L")) > 127
    assert (found.seen.pen & ink).sum() >= (1 - missed) * ink.sum()
    drawn = folder / "truth" / f"{name}_tissue.png"
    if drawn.exists():
        clear = (np.asarray(Image.open(drawn).convert("L")) > 200) & ~dilated(ink, 2)
        assert (found.seen.pen & clear).sum() <= 0.01 * clear.sum()


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::DeprecationWarning")  # of exporters that torch calls
def test_a_network_of_ones_own_finds_the_tissue(tmp_path):
    import torch

    class Pink(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return 5 * (0.9 - pixels[:, 1:2])  # normalised green: 2.1 on glass, 0 on tissue

    example = torch.zeros(1, 3, 512, 512)
    torch.jit.trace(Pink(), example).save(str(tmp_path / "pink.pt"))
    pixels = glass(600, 440)  # several windows
    pixels[40:150, 60:560] = (190, 120, 180)
    found = segment(pixels, method="model", model=tmp_path / "pink.pt")
    assert found.rung == "model"
    assert found.mask.sum() == pytest.approx(110 * 500, rel=0.01)
    pytest.importorskip("onnxruntime", reason="extra `int8`")
    pytest.importorskip("onnxscript", reason="extra `int8`")
    torch.onnx.export(Pink().eval(), (example,), str(tmp_path / "pink.onnx"), dynamo=True, verbose=False)
    again = segment(pixels, method="model", model=tmp_path / "pink.onnx")
    assert (again.mask == found.mask).all()


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_network_that_keeps_no_convention_is_refused(tmp_path):
    import torch

    pixels, example = glass(600, 440), torch.zeros(1, 3, 512, 512)
    with pytest.raises(RecipeError, match=r"tissue\.model"):
        segment(pixels, method="model", model=tmp_path / "none.pt")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(RecipeError, match=r"tissue\.model"):
        segment(pixels, method="model", model=tmp_path / "text.onnx")
    torch.jit.trace(torch.nn.Conv2d(3, 5, 1), example).save(str(tmp_path / "five.pt"))
    with pytest.raises(RecipeError, match="2 channels"):
        segment(pixels, method="model", model=tmp_path / "five.pt")
