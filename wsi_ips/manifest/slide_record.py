"""A row of a manifest: its columns, the values each may hold, and both as a JSON schema."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from wsi_ips.geometry import Scale
from wsi_ips.labels import Split
from wsi_ips.provenance import atomic_write_json

MAX_NAME_BYTES = 120  # longest slide_id in UTF-8. File systems allow 255 bytes, and the package appends to the name.
FORBIDDEN = r'[/\\:*?"<>|\x00-\x1f\x7f]'  # characters that some file systems do not allow in a name
SMALLEST_MPP, LARGEST_MPP = 0.01, 100.0
NUMBER = r"[0-9]*\.?[0-9]+"
PAIR = rf"(?![0-9]+,[0-9]+$){NUMBER}[,;]{NUMBER}"
# What the JSON schema requires of a cell, beyond being text
CELL_PATTERNS: dict[str, dict[str, Any]] = {
    "slide_id": {
        "minLength": 1,
        "maxLength": MAX_NAME_BYTES,
        "pattern": r"^(?![.]|__)[^" + FORBIDDEN[1:-1] + r"]*[^. " + FORBIDDEN[1:-1] + r"]$",
    },
    "path": {"minLength": 1},
    "tissue_min_saturation": {"pattern": r"^(0(\.[0-9]+)?|1(\.0+)?|\.[0-9]+)?$"},
    "mpp": {"pattern": rf"^({NUMBER}|{PAIR})?$"},
}


def _folder_name(value: str) -> str:
    if not value or value.startswith((".", "__")) or value.endswith((".", " ")) or re.search(FORBIDDEN, value):
        raise ValueError("cannot be a folder name; use letters, digits, spaces, - and _")
    if len(value.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"longer than {MAX_NAME_BYTES} bytes; shorten it")
    return value


def _forward_slashes(value: object) -> object:
    if isinstance(value, str) and "\\" in value and os.sep == "/":
        raise ValueError("holds a backslash; write folders with /")
    return value


def _path_unless_url(value: Path | str) -> Path | str:
    return value if isinstance(value, str) and re.match(r"[a-z][a-z0-9+.-]*://", value) else Path(value)


def _scale(value: object) -> object:
    """Parse ``0.25``, or ``0.25,0.26`` for x and y."""
    if isinstance(value, int | float):
        return Scale(value, value)
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\d+,\d+", value):
        # `1,25` is ambiguous: 1.25 with a decimal comma, or x = 1 and y = 25.
        raise ValueError("may be a decimal comma; write 0.25 with a point, or x,y as 0.25,0.26")
    try:
        parts = [float(part) for part in re.split("[,;]", value)]
    except ValueError:
        parts = []
    if len(parts) not in (1, 2):
        raise ValueError("not a scale; write µm per level-0 pixel as one number, 0.25, or as x,y: 0.25,0.26")
    return Scale(parts[0], parts[-1])


def _plausible(scale: Scale) -> Scale:
    if not all(SMALLEST_MPP <= axis <= LARGEST_MPP for axis in scale):
        raise ValueError(
            f"not the scale of a slide; write µm per level-0 pixel, between {SMALLEST_MPP:g} and {LARGEST_MPP:g} "
            "(0.25 is usual at 40x)"
        )
    return scale


SomePath = Annotated[Path, BeforeValidator(_forward_slashes)]


class SlideRecord(BaseModel):
    """One row of a manifest. Columns that it does not name are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    slide_id: Annotated[str, AfterValidator(_folder_name)] = Field(
        description="Name of the slide, unique in the file; becomes a folder name"
    )
    path: Annotated[Path | str, BeforeValidator(_forward_slashes), AfterValidator(_path_unless_url)] = Field(
        description="The slide's file, relative to the manifest or absolute; or a URL (https://, s3://, gs://)"
    )
    label: str | None = Field(
        None,
        description="Slide label, one of the recipe's classes; empty = unknown. The recipe may name another column",
    )
    patient_id: str | None = Field(None, description="Slides of one patient stay in one split")
    split: Split | None = Field(None, description="Part of the cohort; empty = predict only")
    mpp: Annotated[Scale, BeforeValidator(_scale), AfterValidator(_plausible)] | None = Field(
        None, description="µm per level-0 pixel; overrides the value in the file; one number or `x,y`"
    )
    annotation: SomePath | None = Field(
        None, description="ASAP XML or QuPath GeoJSON with the outlined tumour, relative to the manifest or absolute"
    )
    outlines: Literal["complete", "partial"] | None = Field(
        None,
        description="`partial`: lesions may lie outside the outlines too, so only what is outlined is known; empty = "
        "`complete`",
    )
    tissue_method: Literal["auto", "otsu", "adaptive", "stain", "all", "model"] | None = Field(
        None,
        description="How tissue is found on this slide; overrides `tissue.method` of the recipe. With it, a slide "
        "is read that would be `unsuited`",
    )
    tissue_min_saturation: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Lowest saturation that counts as stain on this slide, 0 to 1; overrides the recipe's"
    )
    tissue_mask: SomePath | None = Field(
        None, description="GeoJSON with the tissue, as written by the tile stage and edited in QuPath; used as it is"
    )
    coordinates: SomePath | None = Field(
        None,
        description="Tile coordinates of CLAM, TRIDENT, WSInfer or AtlasPatch (HDF5), used instead of our own tiles; "
        "relative to the manifest or absolute",
    )

    @property
    def is_fully_outlined(self) -> bool:
        """Whether an annotation outlines every lesion of the slide."""
        return self.annotation is not None and self.outlines != "partial"


# Columns that every manifest has and every row fills in
REQUIRED = tuple(name for name, info in SlideRecord.model_fields.items() if info.is_required())


def manifest_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of a row, in which every cell is text and an empty one is ``""``."""
    properties = {
        name: {"type": "string", "description": info.description, **_choices(info), **CELL_PATTERNS.get(name, {})}
        for name, info in SlideRecord.model_fields.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A row of a wsi-ips manifest",
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED),
        "additionalProperties": True,
    }


def write_schema(path: Path | str) -> None:
    """Write :func:`manifest_schema` to a file."""
    atomic_write_json(Path(path), manifest_schema())


def _choices(info: FieldInfo) -> dict[str, Any]:
    """Return the ``enum`` of a column with a fixed set of values; empty cells are allowed."""
    names = [n for part in get_args(info.annotation) if get_origin(part) is Literal for n in get_args(part)]
    return {"enum": [*names, ""]} if names else {}
