"""Collect what a model card says about a model's slides and its training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from wsi_ips.config import planned
from wsi_ips.manifest.manifest_csv import read_rows
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import run_facts

SITE_COLUMNS = ("centre", "center", "site", "scanner")
"""Manifest columns that tell where slides come from; their values are counted where they exist."""


def training_facts(run: Run, train: Sequence[SlideRecord], val: Sequence[SlideRecord]) -> dict[str, Any]:
    """Return the facts of a training for its model card, as plain JSON.

    Parameters
    ----------
    run
        The run, with tiled slides.
    train, val
        Training and validation slides.

    Returns
    -------
    dict
        ``slides``: per split the number of slides, of patients (None if unknown) and, per task, of slides of each
        class; ``places``: per split and site column its values with their slides; ``level0_mpp``: µm/px of level 0 with
        their slides; ``made``: time, versions, commit; ``recipe``: sections model and training, seed.
    """
    rows = read_rows(run.recipe.manifest, label_column=run.recipe.labels.column)
    cells = {row.cells["slide_id"]: row.cells for row in rows}
    splits, facts = {"train": train, "val": val}, run_facts()
    return {
        "slides": {name: _counted(run, records) for name, records in splits.items()},
        "places": {
            name: {
                column: dict(Counter(cells[r.slide_id][column] or "(empty)" for r in records))
                for column in SITE_COLUMNS
                if records and column in cells[records[0].slide_id]
            }
            for name, records in splits.items()
        },
        "level0_mpp": dict(Counter(f"{run.states[r.slide_id].mpp or 0:.4g}" for r in (*train, *val))),
        "made": {name: facts[name] for name in ("time", "wsi_ips", "commit", "python", "libraries")},
        "recipe": {
            "seed": run.recipe.seed,
            "model": run.recipe.model.model_dump(mode="json", exclude={"weights"}),
            "training": planned(run.recipe.training, len(train)).model_dump(mode="json"),
        },
    }


def _counted(run: Run, records: Sequence[SlideRecord]) -> dict[str, Any]:
    patients = {r.patient_id for r in records if r.patient_id}
    classes: dict[str, dict[str, int]] = {}
    for number, task in enumerate(run.recipe.labels.tasks):
        texts = [task.format(run.targets[r.slide_id][number]) or "(not known)" for r in records]
        classes[task.name] = dict(sorted(Counter(texts).items()))
    return {"slides": len(records), "patients": len(patients) or None, "classes": classes}
