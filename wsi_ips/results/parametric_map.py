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

from wsi_ips.geometry import Scale
from wsi_ips.results.overlay import RESEARCH
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.results.score_raster import Raster, summed
from wsi_ips.slides.dicom_source import DicomSource

if TYPE_CHECKING:
    from highdicom.pm import ParametricMap

NOT_ANALYSED = -1.0  # value of cells without a tile; stored as Float Pixel Padding Value
TILE_PX = 256
COARSEST_PX = 64  # levels are added until the longer side is at most this
# Namespace of the UIDs: the same scores of the same slide give the same UIDs.
NAMESPACE = uuid.UUID("6b0f2f0e-6f43-5c0e-9a57-0d6f3b1f2c11")
FIRST_SERIES = 9001  # series number of the first score map of the registry; the others follow


@dataclass(frozen=True)
class MapFacts:
    """Facts that a map holds besides its numbers."""

    kind: str  # name of the score map
    meaning: str  # of the numbers, at most 64 characters
    model_id: str
    software_version: str
    fingerprint: str  # of the scores and their tiles


def parametric_maps(raster: Raster, source: DicomSource, facts: MapFacts) -> list[ParametricMap]:
    """Return the map of one slide, finest level first: one cell of the tile grid per pixel, then means of 2 x 2."""
    raster.require_0_to_1(facts.kind)
    levels = [np.clip(raster.values, 0, 1)]
    while max(levels[-1].shape) > COARSEST_PX:
        # A cell is the mean of the cells below it that have a value.
        total, known = summed(np.nan_to_num(levels[-1])), summed(np.isfinite(levels[-1]).astype(np.float32))
        levels.append(np.divide(total, known, out=np.full_like(total, np.nan), where=known > 0))
    return [_instance(values, raster, number, source, facts) for number, values in enumerate(levels)]


def _instance(
    values: NDArray[np.float32], raster: Raster, number: int, source: DicomSource, facts: MapFacts
) -> ParametricMap:  # level ``number``: a cell is 2 ** number cells of the raster wide
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    label = facts.kind.upper().replace("-", "_")
    header, cell = source.header, raster.cell_px0.times(Scale(2**number, 2**number))
    row_mm, column_mm = map(float, header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing)
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
