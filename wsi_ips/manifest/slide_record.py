"""A row of a manifest: its columns, the values each may hold, and both as a JSON schema."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from wsi_ips.errors import ManifestError
from wsi_ips.geometry import Scale
from wsi_ips.labels import Split, matched
from wsi_ips.provenance import atomic_write_json
from wsi_ips.tables import SIGN

MAX_NAME_BYTES = 120  # longest slide_id in UTF-8. File systems allow 255 bytes, and the package appends to the name.
FORBIDDEN = r'[/\\:*?"<>|\x00-\x1f\x7f]'  # characters that some file systems do not allow in a name
# Characters without width, and those that turn the direction of text: two names that look the same would differ
INVISIBLE = (
    r"[\x80-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb]"
)
DEVICES = (
    "con",
    "prn",
    "aux",
    "nul",
    "conin[$]",
    "conout[$]",
    "com[0-9\u00b9\u00b2\u00b3]",
    "lpt[0-9\u00b9\u00b2\u00b3]",
)
# Names that Windows keeps for devices, with any ending, in any case (JSON schemas know no flag for it)
RESERVED = "(?:" + "|".join(re.sub("[a-z]", lambda c: f"[{c[0]}{c[0].upper()}]", d) for d in DEVICES) + ") *(?:[.]|$)"
SMALLEST_MPP, LARGEST_MPP = 0.01, 100.0
NUMBER = r"[0-9]*\.?[0-9]+"
PAIR = rf"(?![0-9]+,[0-9]+$){NUMBER}[,;]{NUMBER}"
# What the JSON schema requires of a cell, beyond being text
CELL_PATTERNS: dict[str, dict[str, Any]] = {
    "slide_id": {
        "minLength": 1,
        "maxLength": MAX_NAME_BYTES,
        "pattern": rf"^(?![.]|__|{SIGN}|{RESERVED}|.*{INVISIBLE})"
        rf"[^{FORBIDDEN[1:-1]}]*[^. {FORBIDDEN[1:-1]}]$",
    },
    "path": {"minLength": 1},
    "tissue_min_saturation": {"pattern": r"^(0(\.[0-9]+)?|1(\.0+)?|\.[0-9]+)?$"},
    "mpp": {"pattern": rf"^({NUMBER}|{PAIR})?$"},
}


def _folder_name(value: str) -> str:
    if not value or value.startswith((".", "__")) or value.endswith((".", " ")) or re.search(FORBIDDEN, value):
        raise ValueError("cannot be a folder name; use letters, digits, spaces, - and _")
    if re.match(RESERVED, value):
        raise ValueError("is the name of a device on Windows, which cannot store it; use another name")
    if re.match(SIGN, value):
        raise ValueError("begins like a formula of a spreadsheet; begin with a letter or a digit")
    if len(value.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"longer than {MAX_NAME_BYTES} bytes; shorten it")
    return value


def _visible(value: str) -> str:
    if re.search(INVISIBLE, value):
        raise ValueError(f"holds characters that nobody sees ({value!a}); remove them")
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

    slide_id: Annotated[str, AfterValidator(_folder_name), AfterValidator(_visible)] = Field(
        description="Name of the slide, unique in the file; becomes a folder name"
    )
    path: Annotated[Path | str, BeforeValidator(_forward_slashes), AfterValidator(_path_unless_url)] = Field(
        description="The slide's file, relative to the manifest or absolute; or a URL (https://, s3://, gs://)"
    )
    label: str | None = Field(
        None,
        description="Slide label, one of the recipe's classes; empty = unknown. The recipe may name another column",
    )
    patient_id: Annotated[str, AfterValidator(_visible)] | None = Field(
        None, description="Slides of one patient stay in one split"
    )
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

    @field_validator("split", "outlines", "tissue_method", mode="before")
    @classmethod
    def _as_spelled_here(cls, value: object, info: ValidationInfo) -> object:
        """Match a word in another case with the known one."""
        known = _choices(cls.model_fields[str(info.field_name)]).get("enum", [])
        return matched(value, known) if isinstance(value, str) else value

    @property
    def is_fully_outlined(self) -> bool:
        """Whether an annotation outlines every lesion of the slide."""
        return self.annotation is not None and self.outlines != "partial"


def named_slide(slide_id: str, path: Path | str) -> SlideRecord:
    """Return the record of a slide that is named after its file; raises ManifestError where the name cannot be used."""
    try:
        return SlideRecord.model_validate({"slide_id": slide_id, "path": path})
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ManifestError(f"the name of {path} {text}, or write a manifest with your own names") from error


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
