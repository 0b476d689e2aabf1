"""Headers of DICOM slides: the finest instance, completed where a converter left something out."""

from __future__ import annotations

import shutil

import pydicom
import pytest

from wsi_ips.errors import SlideNotFoundError, UnsupportedSlideError
from wsi_ips.slides.dicom_source import read_dicom_source

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")


@pytest.mark.parametrize("name", ["boxes_0.dcm", "boxes_1.dcm"])
def test_whichever_file_is_named_the_finest_is_found(real_data, name):
    found = read_dicom_source(real_data / "slides" / "dicom_boxes" / name)
    assert found.size_px0 == (16, 16)
    assert list(found.header.ImageType)[2] == "VOLUME"
    assert found.notes == ()


def test_of_several_levels_the_finest_is_taken_and_other_series_are_left_alone(tmp_path, real_data):
    fine = pydicom.dcmread(real_data / "slides" / "w2d_jpeg.dcm")
    fine.save_as(tmp_path / "b.dcm")
    coarse = pydicom.dcmread(real_data / "slides" / "w2d_jpeg.dcm")
    coarse.TotalPixelMatrixColumns, coarse.TotalPixelMatrixRows = 478, 357
    coarse.save_as(tmp_path / "a.dcm")
    shutil.copy(real_data / "slides" / "multi_frame_jpeg_camelyon_challenge_image.dcm", tmp_path / "c.dcm")
    (tmp_path / "d.dcm").write_bytes(b"no DICOM")
    assert read_dicom_source(tmp_path / "a.dcm").size_px0 == (957, 715)


def test_what_a_converter_left_out_is_filled_and_told(real_data):
    found = read_dicom_source(real_data / "slides" / "w2d_jpeg.dcm")
    assert found.header.PatientID == ""
    assert found.header.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem == 0
    text = " ".join(found.notes)
    assert "lacks PatientName, PatientID" in text
    assert "does not say where on the glass it begins" in text
    assert "names no container" in text


def test_other_slides_and_damaged_headers_are_refused_with_the_reason(tmp_path, real_data):
    with pytest.raises(UnsupportedSlideError, match=r"CMU-1-Small-Region\.svs: no DICOM file"):
        read_dicom_source(real_data / "slides" / "CMU-1-Small-Region.svs")
    with pytest.raises(SlideNotFoundError):
        read_dicom_source(tmp_path / "no.dcm")
    data = pydicom.dcmread(real_data / "slides" / "w2d_jpeg.dcm")
    del data.FrameOfReferenceUID
    data.save_as(tmp_path / "s.dcm")
    with pytest.raises(UnsupportedSlideError, match=r"s\.dcm: its header lacks FrameOfReferenceUID"):
        read_dicom_source(tmp_path / "s.dcm")
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.30"
    data.save_as(tmp_path / "s.dcm")
    with pytest.raises(UnsupportedSlideError, match="no whole-slide image"):
        read_dicom_source(tmp_path / "s.dcm")
