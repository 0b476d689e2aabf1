"""Recipe values that are names of a registry: checked against it, without importing what they name."""

from __future__ import annotations

from functools import partial

from pydantic import AfterValidator

from wsi_ips.registry import registry


def listed_in(plural: str) -> AfterValidator:
    """Build the validator of a key that names an entry, for ``Annotated[str, listed_in("poolings")]``.

    Parameters
    ----------
    plural
        Name of the registry in :data:`wsi_ips.registry.HOMES`.
    """
    return AfterValidator(partial(_require_listed, plural))


def _require_listed(plural: str, name: str) -> str:
    registry(plural)[name]  # raises RecipeError, a ValueError, which names the choices
    return name
