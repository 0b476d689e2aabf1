"""What a run says of itself: recipe, versions, machine, parts."""

from __future__ import annotations

from typing import Any

from wsi_ips.manifest import Splits
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import atomic_write_json, run_facts


def write_facts(run: Run) -> dict[str, Any]:
    """Write ``run.json``, which is enough to open the run's folder again; what is in it."""
    parts = Splits(({r.slide_id: r.split for r in run.records if r.split is not None},))
    facts = {
        "run": run_facts(),
        "recipe": run.recipe.model_dump(mode="json"),
        "parts": {"hash": parts.hash, **parts.counts(0)},
    }
    atomic_write_json(run.folder.facts, facts)
    return facts
