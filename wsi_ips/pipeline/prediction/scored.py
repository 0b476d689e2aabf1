"""Which model a run uses, which slides it has scored, and how their probabilities are to be read; no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wsi_ips.inference import SlideScores, read_scores, stored_fingerprint
from wsi_ips.manifest import SlideRecord
from wsi_ips.model.calibration import Calibration, read_calibration
from wsi_ips.model.card import checkpoint_fingerprint, read_card
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.pipeline.learning.feature_source import IMPORTED_KEY
from wsi_ips.pipeline.run import Run
from wsi_ips.provenance import fingerprint
from wsi_ips.tiles import features_fingerprint


def checkpoint_folder(run: Run) -> Path:
    """The checkpoint the recipe names, else the one the run trains."""
    return run.recipe.predict.checkpoint or run.folder.model


def scores_fingerprint(run: Run, record: SlideRecord, model: str) -> str:
    """Fingerprint that a slide's scores must have to be up to date."""
    backend = run.recipe.compute.scan_backend
    how: list[str | None] = [backend] if SCAN_BACKENDS[backend].is_calibrated else []
    if run.recipe.features.imported is not None:  # those of the model's own encoder are the pixels in another form
        folder = (run.recipe.features.location or run.folder.features) / IMPORTED_KEY
        how.append(features_fingerprint(folder, record.slide_id))
    return fingerprint("scores", model, run.header(record).fingerprint, *how)


def predicted(run: Run) -> list[SlideRecord]:
    """Slides whose stored scores are up to date with the checkpoint and their tiles."""
    model = checkpoint_fingerprint(checkpoint_folder(run))
    return [
        record
        for record in run.with_tiles()
        if (found := stored_fingerprint(run.folder.scores, record.slide_id)) is not None
        and found == scores_fingerprint(run, record, model)
    ]


def model_calibration(run: Run) -> Calibration:
    """How probabilities of the run's model are to be read."""
    folder = checkpoint_folder(run)
    return read_calibration(folder, read_card(folder).tasks, checkpoint_fingerprint(folder))


def slide_scores(run: Run, record: SlideRecord, calibration: Calibration | None = None) -> SlideScores:
    """A slide's stored scores with the calibration of the run's model; give it where it is known already."""
    known = calibration or model_calibration(run)
    return replace(read_scores(run.folder.scores, record.slide_id), calibration=known)
