"""A score map as DICOM Parametric Map: float pixels in the slide's own frame of reference, one instance per level.

Needs the extra ``dicom``. DICOM places a pixel matrix by the centre of its first pixel, so a map with larger pixels
than the slide begins half a cell further in.
"""

from __future__ import annotations

import uuid
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.errors import ScoresError
from wsi_ips.geometry import Scale
from wsi_ips.results.picture_page import RESEARCH
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.results.score_raster import Raster
from wsi_ips.slides.dicom_source import DicomSource

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap

NOT_ANALYSED = -1.0
"""Value of cells without a tile; stored as Float Pixel Padding Value."""
TILE_PX = 256
COARSEST_PX = 64
"""Levels are added until the longer side is at most this."""
NAMESPACE = uuid.UUID("6b0f2f0e-6f43-5c0e-9a57-0d6f3b1f2c11")
"""Namespace of the UIDs: the same scores of the same slide give the same UIDs."""
FIRST_SERIES = 9001
"""Series number of the first score map of the registry; the others follow."""


@dataclass(frozen=True)
class MapFacts:
    """Facts that a map holds besides its numbers."""

    kind: str  # Name of the score map
    meaning: str  # Meaning of the numbers, at most 64 characters
    model_id: str  # Identity of the model
    software_version: str  # Version of this program
    fingerprint: str  # Fingerprint of the scores and their tiles


def parametric_maps(raster: Raster, source: DicomSource, facts: MapFacts) -> list[ParametricMap]:
    """Return the map of one slide, finest level first: one cell of the tile grid per pixel, then means of 2 x 2.

    Raises
    ------
    ScoresError
        A score is outside 0-1.
    """
    known = raster.values[np.isfinite(raster.values)]
    if known.size and not (known.min() > -1e-4 and known.max() < 1 + 1e-4):
        raise ScoresError(f"{facts.kind} map: scores reach {known.min():.4g} to {known.max():.4g}, not 0-1")
    return [
        _instance(values, raster, factor, number, source, facts)
        for number, (values, factor) in enumerate(_pyramid(np.clip(raster.values, 0, 1)))
    ]


def _pyramid(values: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], int]]:
    """Return levels with their factor; a cell is the mean of the cells below it that have a value."""
    levels = [(values, 1)]
    while max(levels[-1][0].shape) > COARSEST_PX:
        levels.append((_halved(levels[-1][0]), levels[-1][1] * 2))
    return levels


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = values.shape
    filled = np.pad(values, ((0, height % 2), (0, width % 2)), constant_values=np.nan)
    blocks = filled.reshape(filled.shape[0] // 2, 2, filled.shape[1] // 2, 2)
    count = np.isfinite(blocks).sum(axis=(1, 3))
    total = np.nansum(blocks, axis=(1, 3), dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _instance(
    values: NDArray[np.float32], raster: Raster, factor: int, number: int, source: DicomSource, facts: MapFacts
) -> ParametricMap:
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    label = facts.kind.upper().replace("-", "_")
    header, cell = source.header, raster.cell_px0.times(Scale(factor, factor))
    row_mm, column_mm = _spacing_mm(source)
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=label[:16],
        lut_explanation=facts.meaning[:64],
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=Code(*SCORE_MAPS[facts.kind].concept),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom|highdicom")  # unusual values in the slide's own header
        found = hd.pm.ParametricMap(
            source_images=[header],
            pixel_array=np.where(np.isfinite(values), values, np.float32(NOT_ANALYSED)),
            series_instance_uid=_uid(source, facts, "series"),
            series_number=FIRST_SERIES + list(SCORE_MAPS).index(facts.kind),
            series_description=f"wsi-ips {facts.kind}: {RESEARCH.lower()}",
            sop_instance_uid=_uid(source, facts, str(number)),
            instance_number=number + 1,
            manufacturer="wsi-ips",
            manufacturer_model_name="wsi-ips",
            software_versions=facts.software_version,
            device_serial_number=facts.model_id,
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping],
            voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
            content_label=label[:16],
            content_description=f"{facts.meaning}; {RESEARCH.lower()}"[:64],
            content_qualification=hd.ContentQualificationValues.RESEARCH,
            pixel_measures=hd.PixelMeasuresSequence((cell.y * row_mm, cell.x * column_mm), slice_thickness=None),
            plane_orientation=hd.PlaneOrientationSequence("SLIDE", header.ImageOrientationSlide),
            plane_positions=[hd.PlanePositionSequence("SLIDE", _position_mm(raster, cell, source), (1, 1))],
            dimension_organization_type="TILED_SPARSE",
            tile_pixel_array=True,
            tile_size=tuple(min(TILE_PX, side) for side in values.shape),
            pyramid_uid=_uid(source, facts, "pyramid"),
            pyramid_label=label,
        )
    found.FloatPixelPaddingValue = found.FloatPixelPaddingRangeLimit = NOT_ANALYSED
    return found


def _spacing_mm(source: DicomSource) -> tuple[float, float]:
    """Return the distance between the slide's rows and between its columns, mm."""
    measures = source.header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    row, column = measures.PixelSpacing
    return float(row), float(column)


def _position_mm(raster: Raster, cell: Scale, source: DicomSource) -> tuple[float, float, float]:
    """Return the position of the first cell's centre on the glass, mm."""
    from highdicom.spatial import ImageToReferenceTransformer

    transform = ImageToReferenceTransformer.for_image(source.header, for_total_pixel_matrix=True)
    middle = np.array([[raster.origin_px0.x + cell.x / 2, raster.origin_px0.y + cell.y / 2]])
    x, y, z = transform(middle)[0].tolist()
    return x, y, z


def _uid(source: DicomSource, facts: MapFacts, part: str) -> Any:
    from highdicom import UID

    name = "/".join([str(source.header.SOPInstanceUID), facts.fingerprint, facts.kind, part])
    return UID.from_uuid(str(uuid.uuid5(NAMESPACE, name)))
