"""DICOM Parametric Maps of real DICOM slides: read back, and every cell lies where its tile is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from wsi_ips.errors import ScoresError
from wsi_ips.geometry import Box, Point, Scale
from wsi_ips.results.parametric_map import NOT_ANALYSED, MapFacts, parametric_maps
from wsi_ips.results.score_raster import Raster, tile_raster
from wsi_ips.slides import open_slide
from wsi_ips.slides.dicom_source import DicomSource, read_dicom_source

FACTS = MapFacts("probability", "probability of tumor, each tile alone", "net-0123", "0.1.0", "0123456789abcdef")
SLIDES = ("multi_frame_jpeg_camelyon_challenge_image.dcm", "w2d_jpeg.dcm", "dicom_boxes/boxes_1.dcm")
pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")


def grid_of(source: DicomSource, footprint: float, stride: float, origin: tuple[int, int] = (0, 0)):
    """Corners and raster of a grid over the slide, without a corner of it; scores differ everywhere."""
    size = source.size_px0
    columns = int((size.width - origin[0] - footprint) // stride) + 1
    rows = int((size.height - origin[1] - footprint) // stride) + 1
    x, y = (a.ravel() for a in np.meshgrid(np.arange(columns), np.arange(rows)))
    keep = x + y > 2
    x, y = np.rint(x[keep] * stride).astype(int) + origin[0], np.rint(y[keep] * stride).astype(int) + origin[1]
    score = np.linspace(0, 1, len(x), dtype=np.float32)[np.random.default_rng(0).permutation(len(x))]
    bounds = Box(*origin, size.width - origin[0], size.height - origin[1])
    steps = Scale(stride, stride)
    raster = tile_raster(x, y, score, bounds=bounds, stride_px0=steps, footprint_px0=Scale(footprint, footprint))
    return x, y, score, raster


def reread(found: hd.pm.ParametricMap, folder: Path) -> hd.pm.ParametricMap:
    found.save_as(folder / "map.dcm")
    return hd.pm.ParametricMap.from_file(folder / "map.dcm")


def on_glass(data: pydicom.Dataset, column: float, row: float) -> np.ndarray:
    """Position in mm of a pixel's middle, by the formula of the standard (PS3.3 C.7.6.2.1.1), without highdicom."""
    origin = data.TotalPixelMatrixOriginSequence[0]
    start = np.array([float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem), 0])
    cosines = np.array([float(v) for v in data.ImageOrientationSlide])
    down, across = (float(v) for v in data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing)
    return start + cosines[:3] * across * column + cosines[3:] * down * row


@pytest.mark.parametrize("name", SLIDES)
@pytest.mark.parametrize(("footprint", "stride"), [(4, 4), (5, 2.5), (3, 3.4)])
def test_every_cell_of_every_level_lies_where_its_tiles_are(tmp_path, real_data, name, footprint, stride):
    source = read_dicom_source(real_data / "slides" / name)
    _, _, _, raster = grid_of(source, footprint, stride, origin=(3, 1))
    for level, found in enumerate(parametric_maps(raster, source, FACTS)):
        back, cell = reread(found, tmp_path), stride * 2**level
        matrix = back.get_total_pixel_matrix(apply_real_world_transform=False)
        for row, column in ((0, 0), (matrix.shape[0] - 1, matrix.shape[1] // 2)):
            middle = 3 + (column + 0.5) * cell, 1 + (row + 0.5) * cell  # level-0 px from the corner of the slide
            wanted = on_glass(source.header, middle[0] - 0.5, middle[1] - 0.5)
            spacing = float(source.header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0])
            assert np.abs(on_glass(back, column, row) - wanted).max() < 0.01 * spacing * footprint


@pytest.mark.parametrize("name", SLIDES)
def test_the_numbers_come_back_and_what_was_not_analysed_is_padding(tmp_path, real_data, name):
    source = read_dicom_source(real_data / "slides" / name)
    x, y, score, raster = grid_of(source, 4, 4)
    back = reread(parametric_maps(raster, source, FACTS)[0], tmp_path)
    matrix = back.get_total_pixel_matrix(apply_real_world_transform=False)
    assert back.BitsAllocated == 32
    np.testing.assert_array_equal(matrix[y // 4, x // 4].astype(np.float32), score)
    assert (matrix == NOT_ANALYSED).sum() == matrix.size - len(x) > 0
    assert back.FloatPixelPaddingValue == NOT_ANALYSED


def test_the_hottest_tile_is_hot_on_the_pixels_of_the_slide(tmp_path, real_data):
    """From the map alone to a place in the file that OpenSlide shows: the darkest tissue, scored highest."""
    path = real_data / "slides" / "w2d_jpeg.dcm"
    source = read_dicom_source(path)
    x, y, _, _ = grid_of(source, 40, 40)
    with open_slide(path) as reader:
        whole = reader.read_region(Point(0, 0), 0, reader.info.size_px0)
        assert reader.info.size_px0 == source.size_px0
    score = np.array([255 - whole[b : b + 40, a : a + 40].mean() for a, b in zip(x, y, strict=True)]) / 255
    raster = tile_raster(
        x, y, score, bounds=Box(0, 0, *source.size_px0), stride_px0=Scale(40, 40), footprint_px0=Scale(40, 40)
    )
    back = reread(parametric_maps(raster, source, FACTS)[0], tmp_path)
    matrix = back.get_total_pixel_matrix(apply_real_world_transform=False)
    row, column = np.unravel_index(matrix.argmax(), matrix.shape)
    to_slide = hd.spatial.ReferenceToImageTransformer.for_image(source.header, for_total_pixel_matrix=True)
    middle = to_slide(on_glass(back, column, row)[None])[0]
    left, top = np.rint(middle[:2] - 20).astype(int)
    shown = 255 - whole[top : top + 40, left : left + 40].mean()
    assert shown / 255 == pytest.approx(score.max(), abs=1e-6)


def test_identity_comes_from_the_slide_and_meaning_is_coded(tmp_path, real_data):
    source = read_dicom_source(real_data / "slides" / "dicom_boxes" / "boxes_1.dcm")
    _, _, _, raster = grid_of(source, 4, 4)
    back, header = reread(parametric_maps(raster, source, FACTS)[0], tmp_path), source.header
    for keyword in (
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "StudyDate",
        "ContainerIdentifier",
        "ImageOrientationSlide",
    ):
        assert back[keyword].value == header[keyword].value, keyword
    assert back.SpecimenDescriptionSequence[0].SpecimenUID == header.SpecimenDescriptionSequence[0].SpecimenUID
    assert back.SourceImageSequence[0].ReferencedSOPInstanceUID == header.SOPInstanceUID
    assert back.SeriesInstanceUID != header.SeriesInstanceUID
    mapping = back.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    quantity = mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0]
    assert (quantity.CodeValue, quantity.CodingSchemeDesignator) == ("122157", "DCM")
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.LUTExplanation == FACTS.meaning
    assert back.ContentQualification == "RESEARCH"
    assert "research use only" in back.ContentDescription


def test_coarser_levels_are_means_of_what_was_analysed(real_data):
    source = read_dicom_source(real_data / "slides" / SLIDES[0])
    values = np.full((99, 130), np.nan, np.float32)
    values[2:, 1:] = 0.25
    values[2, 1] = 1.0
    raster = Raster(values, np.isfinite(values), Point(0, 0), Scale(4, 4), Scale(4, 4))
    levels = parametric_maps(raster, source, FACTS)
    sizes = [(m.TotalPixelMatrixRows, m.TotalPixelMatrixColumns) for m in levels]
    assert sizes == [(99, 130), (50, 65), (25, 33)]
    assert len({m.PyramidUID for m in levels}) == len({m.SeriesInstanceUID for m in levels}) == 1
    assert len({m.SOPInstanceUID for m in levels}) == 3
    second = levels[1].get_total_pixel_matrix(apply_real_world_transform=False)
    assert second[0, 0] == NOT_ANALYSED
    assert second[1, 0] == pytest.approx((1.0 + 0.25) / 2)  # of four cells two have a tile
    assert second[49, 64] == pytest.approx(0.25)


def test_the_same_scores_make_the_same_identifiers_and_others_do_not(real_data):
    source = read_dicom_source(real_data / "slides" / SLIDES[1])
    _, _, _, raster = grid_of(source, 40, 40)

    def uids(facts: MapFacts) -> list[str]:
        found = parametric_maps(raster, source, facts)[0]
        return [found.SOPInstanceUID, found.SeriesInstanceUID, found.PyramidUID]

    attention = MapFacts("attention", "rank", "net-0123", "0.1.0", FACTS.fingerprint)
    assert uids(FACTS) == uids(FACTS)
    assert not set(uids(FACTS)) & set(uids(attention))
    assert not set(uids(FACTS)) & set(uids(MapFacts("probability", "p", "net-0123", "0.1.0", "f")))


def test_a_score_that_is_none_is_refused(real_data):
    source = read_dicom_source(real_data / "slides" / SLIDES[1])
    _, _, _, raster = grid_of(source, 40, 40)
    wrong = Raster(raster.values * 2, raster.starts, raster.origin_px0, raster.cell_px0, raster.tile_px0)
    with pytest.raises(ScoresError, match="not 0-1"):
        parametric_maps(wrong, source, FACTS)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (Debian package dicom3tools)")
@pytest.mark.parametrize("kind", ["probability", "attention"])
def test_the_validator_finds_no_error_in_the_map_of_a_slide_with_a_whole_header(tmp_path, real_data, kind):
    source = read_dicom_source(real_data / "slides" / "dicom_boxes" / "boxes_0.dcm")
    _, _, _, raster = grid_of(source, 4, 4)
    reread(parametric_maps(raster, source, MapFacts(kind, "m", "net", "0.1.0", "f"))[0], tmp_path)
    done = subprocess.run(["dciodvfy", "-new", tmp_path / "map.dcm"], capture_output=True, text=True, check=False)
    assert "ParametricMap" in done.stderr
    assert "Error" not in done.stderr
