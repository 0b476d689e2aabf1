"""Types of recipe keys that pydantic has no name for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, ValidationInfo

FOLDER = "folder"
"""Entry of the validation context: the folder of the recipe file."""


def _from_recipe_folder(path: Path, info: ValidationInfo) -> Path:
    context = info.context or {}
    return context[FOLDER] / path.expanduser() if FOLDER in context else path


RecipePath: TypeAlias = Annotated[Path, AfterValidator(_from_recipe_folder)]
"""A file or folder: relative to the recipe file, ``~`` is the home folder."""
