"""Recipe values that name a registry entry, checked without importing what they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from wsi_ips.registry import registry


@dataclass(frozen=True)
class ListedIn:
    """Mark of a recipe value that must be a name of a registry.

    Attributes
    ----------
    plural
        Name of the registry in :data:`wsi_ips.registry.HOMES`.
    """

    plural: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the name after pydantic has checked that it is a string."""
        return core_schema.no_info_after_validator_function(self._require_listed, handler(source))

    def _require_listed(self, name: str) -> str:
        registry(self.plural)[name]  # raises RecipeError, a ValueError, which lists the choices
        return name


def listed_in(plural: str) -> ListedIn:
    """Return the mark of a key that names a registry entry, for ``Annotated[str, listed_in("poolings")]``."""
    return ListedIn(plural)
