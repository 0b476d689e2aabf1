"""Header of a DICOM slide, for maps that refer to it. Needs the extra ``dicom``."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_ips.errors import SlideNotFoundError, UnsupportedSlideError
from wsi_ips.geometry import Size

if TYPE_CHECKING:
    from pydicom import Dataset

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
# attributes that must be present but may be empty (type 2); some converters leave them out
MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
# attributes without which a map cannot refer to the slide, or be placed on it
NEEDED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ImageOrientationSlide",
    "SharedFunctionalGroupsSequence",
)


@dataclass(frozen=True)
class DicomSource:
    """The finest instance of a DICOM slide: its header, without pixels."""

    header: Dataset  # the data set, with missing optional attributes filled in
    notes: tuple[str, ...]  # attributes that the file leaves out, and how they were filled in

    @property
    def size_px0(self) -> Size:
        """Size of level 0."""
        return Size(int(self.header.TotalPixelMatrixColumns), int(self.header.TotalPixelMatrixRows))


def read_dicom_source(path: Path) -> DicomSource:
    """Read the finest instance of the slide that a file belongs to.

    A slide is one file per level, all in one folder and of one series; ``path`` is any of them. Raises
    SlideNotFoundError, or UnsupportedSlideError that names what the file or its header lacks.
    """
    if not path.exists():
        raise SlideNotFoundError(f"slide {path}: no such file; correct column `path` of the manifest")
    named = _header(path)
    if named is None:
        raise UnsupportedSlideError(
            f"slide {path.name}: no DICOM file. A DICOM map refers to the DICOM instances of its slide; for other "
            "slides take the pictures, the OME-TIFF or `wsi-ips export qupath`, or convert the slide to DICOM first"
        )
    if named.SOPClassUID != SLIDE_CLASS:
        raise UnsupportedSlideError(f"slide {path.name}: DICOM, but no whole-slide image ({named.SOPClassUID.name})")
    files = [path, *(p for p in sorted(path.parent.iterdir()) if p != path and p.suffix == path.suffix)]
    levels = [d for d in map(_header, files) if d and d.get("SeriesInstanceUID") == named.get("SeriesInstanceUID")]
    volumes = [d for d in levels if d.SOPClassUID == SLIDE_CLASS and "VOLUME" in d.get("ImageType", ())]
    if not volumes:
        raise UnsupportedSlideError(f"slide {path.name}: its series has no instance of image type VOLUME")
    return _complete(max(volumes, key=lambda d: int(d.TotalPixelMatrixColumns)), path.name)


def _header(path: Path) -> Dataset | None:
    """Return the data set of a file without its pixels, None where it is not a DICOM file."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    if not path.is_file():
        return None
    try:
        found = dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None
    return found if "SOPClassUID" in found else None


def _complete(header: Dataset, name: str) -> DicomSource:
    """Return a copy with the attributes that every instance must have, and notes on those filled in."""
    from pydicom import Dataset

    missing = [keyword for keyword in NEEDED if keyword not in header]
    if missing:
        raise UnsupportedSlideError(f"slide {name}: its header lacks {', '.join(missing)}; nothing can be placed on it")
    full, notes = deepcopy(header), []
    if absent := [keyword for keyword in MAY_BE_EMPTY if keyword not in full]:
        for keyword in absent:
            setattr(full, keyword, "")
        notes.append(f"the slide's header lacks {', '.join(absent)}: left empty in the map")
    if not full.get("TotalPixelMatrixOriginSequence"):
        origin = Dataset()
        origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
        full.TotalPixelMatrixOriginSequence = [origin]
        notes.append("the slide's header does not say where on the glass it begins: taken to be 0, 0 as for the slide")
    if not full.get("ContainerIdentifier"):
        notes.append("the slide's header names no container (glass slide), so the map names none")
    return DicomSource(full, tuple(notes))
