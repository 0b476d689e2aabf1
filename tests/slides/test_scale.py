"""The scale is found wherever the file states it, and a print resolution is never taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from tests.pyramids import textured_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.cli import app
from wsi_ips.errors import ResolutionError
from wsi_ips.geometry import Scale, Size
from wsi_ips.slides import open_slide, trusted_mpp

IMAGE = np.full((300, 420, 3), 240, np.uint8)
OME = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{images}</OME>'
PIXELS = '<Image ID="Image:0"><Pixels SizeX="{width}" SizeY="{height}" {scale}/></Image>'


def described(*images: tuple[int, int, str]) -> dict[str, str]:
    text = "".join(PIXELS.format(width=width, height=height, scale=scale) for width, height, scale in images)
    return {"tiff.ImageDescription": OME.format(images=text), "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}


def stated(properties: dict[str, str]) -> tuple[Scale | None, str]:
    return trusted_mpp(properties, prefix="openslide", size=Size(420, 300))


@pytest.mark.parametrize("layout", [{"tile": (128, 128)}, {"rowsperstrip": 64}], ids=["tiles", "strips"])
@pytest.mark.parametrize("tags", [{}, {"resolution": (300, 300), "resolutionunit": "INCH"}], ids=["no tags", "300 dpi"])
def test_ome_xml_comes_before_resolution_tags(tmp_path, layout, tags):
    path = tmp_path / "a.ome.tif"
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.4, "PhysicalSizeYUnit": "µm"}
    same = {"photometric": "rgb", "compression": "deflate"}
    tifffile.imwrite(path, IMAGE, ome=True, metadata={"axes": "YXS"} | size, **same, **layout, **tags)
    with open_slide(path) as slide:
        assert slide.info.mpp == pytest.approx((0.5, 0.4))
        assert slide.info.mpp_source == "OME-XML PhysicalSize"


@pytest.mark.parametrize(
    ("x", "unit", "expected"),
    [("0.5", None, 0.5), ("500", "nm", 0.5), ("0.0005", "mm", 0.5), ("5000", "Å", 0.5), ("0.5", "\u03bcm", 0.5)],
)
def test_units_of_ome_xml(x, unit, expected):
    named = "" if unit is None else f'PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    found, source = stated(described((420, 300, f'PhysicalSizeX="{x}" PhysicalSizeY="{x}" {named}')))
    assert found == pytest.approx((expected, expected))
    assert source == "OME-XML PhysicalSize"


def test_of_several_images_the_one_of_this_size_counts():
    scale = 'PhysicalSizeX="{0}" PhysicalSizeY="{0}"'.format
    assert stated(described((9, 9, scale(9.0)), (420, 300, scale(0.5))))[0] == Scale(0.5, 0.5)
    assert stated(described((9, 9, scale(9.0)), (8, 8, scale(0.5))))[0] == Scale(0.25, 0.25)  # neither is this image


@pytest.mark.parametrize(
    "scale",
    [
        "",
        'PhysicalSizeX="0.5"',
        'PhysicalSizeX="x" PhysicalSizeY="0.5"',
        'PhysicalSizeX="0" PhysicalSizeY="0.5"',
        'PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="pixel" PhysicalSizeYUnit="pixel"',
        'PhysicalSizeX="0.5" PhysicalSizeY="0.5" <broken',
    ],
)
def test_where_ome_xml_states_none_the_tags_count(scale):
    assert stated(described((420, 300, scale))) == (Scale(0.25, 0.25), "openslide.mpp")


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 600, 1200, 2400])
def test_print_resolutions_are_no_scale(tmp_path, dpi):
    path = write_pyramid(tmp_path / "a.tif", [IMAGE], mpp=(25_400 / dpi, 25_400 / dpi))
    for reader in ("auto", "tiffslide"):
        with open_slide(path, reader=reader) as slide:
            assert slide.info.mpp is None
            with pytest.raises(ResolutionError, match=rf"is {dpi} dpi, a default for print.*column `mpp`"):
                _ = slide.info.pyramid


@pytest.mark.parametrize(("mpp", "is_believed"), [(0.09, False), (0.11, True), (19.9, True), (20.5, False)])
def test_implausible_scales_need_the_manifest(tmp_path, mpp, is_believed):
    path = write_pyramid(tmp_path / "a.tif", [IMAGE], mpp=(mpp, mpp))
    with open_slide(path) as slide:
        assert (slide.info.mpp is not None) == is_believed
        assert is_believed or "not plausible for a slide" in slide.info.mpp_source
    with open_slide(path, mpp_override=mpp) as slide:
        assert slide.info.mpp == Scale(mpp, mpp)


def aperio(path: Path, mpp: float, magnification: int) -> Path:
    text = f"Aperio Image Library\n1031x773|AppMag = {magnification}|MPP = {mpp}"
    return write_jpeg_pyramid(path, textured_pyramid(), description=text)


def test_a_scale_that_contradicts_the_magnification_is_remarked_on(tmp_path):
    for name, mpp, magnification in (("good", 0.25, 40), ("doubled", 0.25, 20), ("halved", 1.0, 20)):
        aperio(tmp_path / f"{name}.svs", mpp, magnification)
    said = {}
    for name in ("good", "doubled", "halved"):
        result = CliRunner().invoke(app, ["check", str(tmp_path / f"{name}.svs")], env={"COLUMNS": "300"})
        said[name] = " ".join(result.output.split())
    assert "the header says 0.25 µm/px and 20x, which is about 0.5 µm/px" in said["doubled"]
    assert "the header says 1 µm/px and 20x, which is about 0.5 µm/px" in said["halved"]
    assert "the header says" not in said["good"]
