"""What a bundle pins of the way from a slide to its pixels, and what it says of its training.

The preparation is what a recipe has in `slides`, `tissue` and `tiles`, as far as it decides which pixels the network
sees; with it a slide is predicted without a recipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from wsi_ips.config import Recipe, Section, SlidesSection, TilesSection, TissueSection, planned
from wsi_ips.errors import CheckpointError
from wsi_ips.manifest import SlideRecord
from wsi_ips.manifest.table import read_rows
from wsi_ips.model.card import ModelCard
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import run_facts

SECTIONS: dict[str, type[Section]] = {"slides": SlidesSection, "tissue": TissueSection, "tiles": TilesSection}
STORAGE = frozenset(["store", "location", "imported", "shared"])
"""Keys of `tiles` that say where tiles are kept or come from."""
HARMLESS = frozenset(["slides.reader"])
"""Readers give the same pixels."""
IMPORTED = "tiles of another tool"
PLACES = ("centre", "center", "site", "scanner")
"""Columns of the manifest by which people tell slides apart; counted where they are there."""


def preparation_of(recipe: Recipe, *, imported: bool = False) -> dict[str, Any]:
    """The sections that decide which pixels are seen, as plain JSON.

    Parameters
    ----------
    recipe
        Of the training.
    imported
        Whether tiles of another tool were used for any slide: our own grid would not give them again.
    """
    found: dict[str, Any] = {name: getattr(recipe, name).model_dump(mode="json") for name in SECTIONS}
    found["tiles"] = {key: value for key, value in found["tiles"].items() if key not in STORAGE}
    found["tiles"]["stride_px"] = recipe.tiles.stride
    found["tiles_from"] = IMPORTED if imported or recipe.tiles.imported is not None else "grid"
    return found


def pinned_sections(card: ModelCard) -> dict[str, Any]:
    """The recipe's sections as the bundle has them, to be used without a recipe.

    Raises
    ------
    CheckpointError
        The bundle does not say, or its tiles are another tool's.
    """
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
        found["tiles"]["stride_px"] = None  # as most recipes leave it: the same tiles have the same fingerprint
    return found


def check_preparation(recipe: Recipe, card: ModelCard) -> None:
    """Refuse a checkpoint that was trained on other pixels than the recipe would show it.

    Raises
    ------
    CheckpointError
        Names each key with both values.
    """
    tiles = recipe.tiles
    if (card.patch_mpp, card.patch_px) != (tiles.mpp, tiles.patch_px):
        raise CheckpointError(
            f"checkpoint {card.model_id}: trained on {card.patch_px} px at {card.patch_mpp} µm/px, the recipe "
            f"tiles {tiles.patch_px} px at {tiles.mpp} µm/px; set `tiles.mpp` and `tiles.patch_px` to those of the "
            "checkpoint"
        )
    if card.preparation is None:
        return
    wanted, found = _sections(card, card.preparation), preparation_of(recipe)
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


def training_facts(run: Run, train: Sequence[SlideRecord], val: Sequence[SlideRecord]) -> dict[str, Any]:
    """What a model card says of the slides behind a model, and of how it was made; plain JSON.

    Parameters
    ----------
    run
        With tiled slides.
    train, val
        Slides that were learned from and chosen by.

    Returns
    -------
    dict
        ``slides``: per part number of slides, patients (None where not known) and per task slides of each class;
        ``places``: per part and column of the manifest its values with their slides; ``level0_mpp``: µm/px of level 0
        with their slides; ``made``: time, versions, commit; ``recipe``: sections model and training, seed.
    """
    cells = _cells(run)
    parts = {"train": train, "val": val}
    facts = run_facts()
    return {
        "slides": {name: _part(run, records) for name, records in parts.items()},
        "places": {
            name: {
                column: dict(Counter(cells[r.slide_id][column] or "(empty)" for r in records))
                for column in PLACES
                if records and column in cells[records[0].slide_id]
            }
            for name, records in parts.items()
        },
        "level0_mpp": dict(Counter(f"{run.states[r.slide_id].mpp or 0:.4g}" for r in (*train, *val))),
        "made": {name: facts[name] for name in ("time", "wsi_ips", "commit", "python", "libraries")},
        "recipe": {
            "seed": run.recipe.seed,
            "model": run.recipe.model.model_dump(mode="json", exclude={"weights"}),
            "training": planned(run.recipe.training, len(train)).model_dump(mode="json"),
        },
    }


def _sections(card: ModelCard, known: Mapping[str, Any]) -> dict[str, Any]:
    """The pinned sections with every key; one that came later has the default that it had silently."""
    try:
        found = {name: kind.model_validate(known[name]).model_dump(mode="json") for name, kind in SECTIONS.items()}
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"checkpoint {card.model_id}: pins settings that this version does not know ({error}); use the version of "
            "wsi-ips that made it, or a newer one"
        ) from error
    found["tiles"] = {key: value for key, value in found["tiles"].items() if key not in STORAGE}
    return found


def _part(run: Run, records: Sequence[SlideRecord]) -> dict[str, Any]:
    patients = {r.patient_id for r in records if r.patient_id}
    classes: dict[str, dict[str, int]] = {}
    for number, task in enumerate(run.recipe.labels.tasks):
        texts = [task.text(run.truths[r.slide_id][number]) or "(not known)" for r in records]
        classes[task.name] = dict(sorted(Counter(texts).items()))
    return {"slides": len(records), "patients": len(patients) or None, "classes": classes}


def _cells(run: Run) -> Mapping[str, Mapping[str, str]]:
    rows = read_rows(run.recipe.manifest, label_column=run.recipe.labels.column)
    return {row.cells["slide_id"]: row.cells for row in rows}


def _shown(value: object) -> str:
    return "(none)" if value in (None, [], ()) else str(value)
