"""Real files: each opens properly, or ends in one of our errors with its name; never anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_ips.errors import RegionReadError, ResolutionError, SlideError, UnsupportedSlideError
from wsi_ips.geometry import Point, Size
from wsi_ips.slides import open_slide, read_thumbnail

GOOD = {
    "CMU-1-Small-Region.svs": ("openslide", 0.499),
    "OS-1-detail.ome.tif": ("tiffslide", 0.2271),
    "OS-2-ndpi.ome.tif": ("tiffslide", 0.2271),
    "demo_tumor_slide.tif": ("openslide", 0.243),
    "w2d_jpeg.dcm": ("openslide", 16.78),
    "test3-DAPI-2-(387).ndpi": ("openslide", 0.2282),
    "small.svs": ("openslide", 0.499),
    "😐.svs": ("openslide", 0.499),
}
UNSCALED = [
    "TCGA-CR-7395-01A-01-TS1.svs",
    "multi_frame_jpeg_camelyon_challenge_image.dcm",
    "boxes.tiff",
    "panimg_valid_tiff.tif",
    "large_image/yb10kx5k.zstd.tiff",
]


@pytest.mark.parametrize("name", GOOD)
def test_reader_and_scale(real_data, name):
    reader_name, mpp = GOOD[name]
    with open_slide(real_data / "slides" / name) as reader:
        assert reader.info.reader == reader_name
        assert reader.info.mpp.x == pytest.approx(mpp, rel=1e-3)
        thumbnail, effective = read_thumbnail(reader, 30.0)
        width_um = reader.info.size_px0.width * reader.info.mpp.x
        assert thumbnail.shape[1] * effective.x == pytest.approx(width_um)


@pytest.mark.parametrize("name", UNSCALED)
def test_a_scale_that_is_none_is_not_believed(real_data, name):
    with open_slide(real_data / "slides" / name) as reader:
        assert reader.info.mpp is None
        with pytest.raises(ResolutionError, match=r"column `mpp` of the manifest"):
            _ = reader.info.pyramid
    with open_slide(real_data / "slides" / name, mpp_override=0.25) as reader:
        assert reader.info.pyramid.mpp == (0.25, 0.25)


def test_grey_is_a_plain_image(real_data):
    with open_slide(real_data / "slides" / "large_image" / "grey10kx5k.tif") as reader:
        assert reader.info.reader == "image"
        assert reader.info.mpp is None


def test_both_readers_agree_on_a_real_slide(real_data):
    path = real_data / "slides" / "demo_tumor_slide.tif"
    with open_slide(path, reader="openslide") as one, open_slide(path, reader="tiffslide") as other:
        where = (Point(3000, 2000), 1, Size(300, 200))
        difference = abs(one.read_region(*where).astype(int) - other.read_region(*where))
        assert difference.max() <= 2


def test_malformed_files_end_in_our_errors_by_name(real_data):
    files = [p for p in sorted((real_data / "malformed").rglob("*")) if p.is_file()]
    assert len(files) >= 9
    for path in files:
        with pytest.raises(SlideError) as caught:
            use(path)
        assert path.name in str(caught.value)


def use(path: Path) -> None:
    """What any stage does with a slide: open it, ask its scale, read it."""
    with open_slide(path) as reader:
        assert reader.info.pyramid
        reader.read_region(Point(0, 0), 0, Size(1, 1))


def test_a_slide_that_breaks_at_the_first_read_stays_an_error(real_data):
    path = real_data / "malformed" / "unreadable.svs"
    try:
        reader = open_slide(path, reader="openslide")
    except UnsupportedSlideError:
        return  # OpenSlide refuses it at once
    with reader:
        for _ in range(2):
            with pytest.raises(RegionReadError, match=r"unreadable\.svs"):
                reader.read_region(Point(0, 0), 0, Size(8, 8))


def test_a_missing_file_is_named():
    with pytest.raises(SlideError, match=r"nowhere\.svs"):
        open_slide(Path("nowhere.svs"))
