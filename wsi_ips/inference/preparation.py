"""Settings that a model pins: the keys of `slides`, `tissue` and `tiles` that decide which pixels it sees.

With them a slide is predicted without a recipe, and a recipe that would show the model other pixels is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from wsi_ips.config import NOT_OF_TILES, Section, SlidesSection, TilesSection, TilingSections, TissueSection
from wsi_ips.errors import CheckpointError
from wsi_ips.model.checkpoint_card import ModelCard

SECTIONS: dict[str, type[Section]] = {"slides": SlidesSection, "tissue": TissueSection, "tiles": TilesSection}
HARMLESS = frozenset(["slides.reader"])  # keys that may differ: all readers give the same pixels
IMPORTED = "tiles of another tool"


def preparation_of(tiling: TilingSections, *, imported: bool = False) -> dict[str, Any]:
    """Return the settings to pin, as plain JSON; `imported`: some slide used tiles of another tool."""
    found: dict[str, Any] = {name: getattr(tiling, name).model_dump(mode="json") for name in SECTIONS}
    found["tiles"] = {key: value for key, value in found["tiles"].items() if key not in NOT_OF_TILES}
    found["tiles"]["stride_px"] = tiling.tiles.stride
    found["tiles_from"] = IMPORTED if imported or tiling.tiles.imported is not None else "grid"
    return found


def pinned_sections(card: ModelCard) -> dict[str, Any]:
    """Return the recipe sections that a model pins, to predict without a recipe."""
    known = card.preparation
    if known is None:
        raise CheckpointError(
            f"checkpoint {card.model_id}: its card pins neither tissue nor tiles; predict with a recipe"
        )
    if known["tiles_from"] == IMPORTED:
        raise CheckpointError(
            f"checkpoint {card.model_id}: trained on {IMPORTED}, which only a recipe can name; predict with a recipe "
            "that has `tiles.imported`, or a manifest with column `coordinates`"
        )
    found = _sections(card, known)
    if found["tiles"]["stride_px"] == found["tiles"]["patch_px"]:
        found["tiles"]["stride_px"] = None  # as most recipes leave it, so that the tiles' fingerprints are equal
    return found


def check_preparation(tiling: TilingSections, card: ModelCard) -> None:
    """Refuse a checkpoint that was trained on other pixels than the recipe gives it; the message names each key."""
    tiles = tiling.tiles
    if (card.patch_mpp, card.patch_px) != (tiles.mpp, tiles.patch_px):
        raise CheckpointError(
            f"checkpoint {card.model_id}: trained on {card.patch_px} px at {card.patch_mpp} µm/px, the recipe "
            f"tiles {tiles.patch_px} px at {tiles.mpp} µm/px; set `tiles.mpp` and `tiles.patch_px` to those of the "
            "checkpoint"
        )
    if card.preparation is None:
        return
    wanted, found = _sections(card, card.preparation), preparation_of(tiling)
    other = [
        f"`{name}.{key}` {_shown(wanted[name][key])} (the recipe: {_shown(value)})"
        for name in SECTIONS
        for key, value in found[name].items()
        if f"{name}.{key}" not in HARMLESS and wanted[name][key] != value
    ]
    if other:
        raise CheckpointError(
            f"checkpoint {card.model_id}: trained with {', '.join(other)}; set these keys as the checkpoint has them, "
            "or leave the recipe out: `wsi-ips predict --checkpoint FOLDER SLIDE`"
        )


def _sections(card: ModelCard, known: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the pinned sections and return them with every key."""
    try:
        found = {name: kind.model_validate(known[name]).model_dump(mode="json") for name, kind in SECTIONS.items()}
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"checkpoint {card.model_id}: pins settings that this version does not know ({error}); use the version of "
            "wsi-ips that made it, or a newer one"
        ) from error
    found["tiles"] = {key: value for key, value in found["tiles"].items() if key not in NOT_OF_TILES}
    return found


def _shown(value: object) -> str:
    return "(none)" if value in (None, [], ()) else str(value)
