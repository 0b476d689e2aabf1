"""Types of recipe keys, and the base class of sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

FOLDER = "folder"
"""Entry of the validation context: the folder of the recipe file."""


def _from_recipe_folder(path: Path, info: ValidationInfo) -> Path:
    context = info.context or {}
    return context[FOLDER] / path.expanduser() if FOLDER in context else path


RecipePath: TypeAlias = Annotated[Path, AfterValidator(_from_recipe_folder)]
"""A file or folder: relative to the recipe file, ``~`` is the home folder."""


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Jitter = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


def once(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names without repetitions, in order."""
    return tuple(dict.fromkeys(names))


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
