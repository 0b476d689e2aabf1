"""Types of recipe keys, and the base class of sections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo, field_validator
from pydantic_core import CoreSchema, core_schema

from wsi_ips.registry import registry

FOLDER = "folder"  # entry of the validation context: the folder of the recipe file


def _from_recipe_folder(path: Path, info: ValidationInfo) -> Path:
    context = info.context or {}
    if "\0" in str(path):
        raise ValueError("a path has no character of code 0")
    try:
        return context[FOLDER] / path.expanduser() if FOLDER in context else path
    except RuntimeError as error:  # `~name` of nobody
        raise ValueError(str(error)) from error


RecipePath: TypeAlias = Annotated[Path, AfterValidator(_from_recipe_folder)]
"""A file or folder: relative to the recipe file, ``~`` is the home folder."""
Share = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Once = AfterValidator(lambda names: tuple(dict.fromkeys(names)))  # drops repeated names


@dataclass(frozen=True)
class ListedIn:
    """Mark of a key whose value names a registry entry; checked without importing the entry."""

    plural: str  # key of `wsi_ips.registry.HOMES`

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the name after pydantic has checked that it is a string."""
        return core_schema.no_info_after_validator_function(self._require_listed, handler(source))

    def _require_listed(self, name: str) -> str:
        registry(self.plural)[name]  # raises RecipeError, a ValueError, which lists the choices
        return name


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true for a number, where pydantic takes 1; YAML reads `yes` and `on` as true."""
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        given = value if isinstance(value, list | tuple) else [value]
        if kinds & {int, float} and bool not in kinds and any(isinstance(part, bool) for part in given):
            raise ValueError("true and false are no numbers; write a number")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of."""
    inner = get_args(annotation)
    yield from (kind for part in inner for kind in _kinds(part)) if inner else [annotation]
