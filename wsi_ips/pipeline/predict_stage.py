"""Stage ``predict``: the label and the tile scores of every slide to predict."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from wsi_ips.cluster import Job, JobOutcome
from wsi_ips.errors import ManifestError
from wsi_ips.inference.preparation import check_preparation
from wsi_ips.inference.slide_scores import stored_fingerprint
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint import require_tasks
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint, read_card
from wsi_ips.model.encoders import encoder_remarks
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.slide_predictions import calibrate, checkpoint_folder, scores_fingerprint, write_predictions
from wsi_ips.pipeline.slide_predictor import PREDICT_JOB, Predicted, Predictor, PredictTask
from wsi_ips.pipeline.spread import failure_of_job, spread, timeout_s
from wsi_ips.scanning import choose_device


def to_predict(run: Run, names: Sequence[str] = ()) -> list[SlideRecord]:
    """Return the slides to predict: the named ones, else those of the recipe's splits and those without a split.

    Raises
    ------
    ManifestError
        A name is not a slide_id of the manifest.
    """
    if names:
        known = {record.slide_id: record for record in run.records}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ManifestError(
                f"manifest {run.recipe.manifest}: no slide_id {', '.join(unknown)}; add a row for it or check "
                "the spelling with `wsi-ips status`"
            )
        return [known[name] for name in names]
    wanted = (*run.recipe.predict.splits, None)
    return [record for record in run.records if record.split in wanted]


def predict_stage(run: Run, names: Sequence[str] = ()) -> int:
    """Predict all slides whose scores are out of date; return the number of slides predicted.

    Raises
    ------
    CheckpointError
        There is no checkpoint, or it was made for other classes, scale or tissue.
    """
    folder = checkpoint_folder(run)
    card = read_card(folder)
    require_tasks(folder, card, run.recipe.labels.tasks)
    check_preparation(run.recipe, card)
    model = checkpoint_fingerprint(folder)
    due = [
        record
        for record in run.with_tiles(to_predict(run, names))
        if stored_fingerprint(run.folder.scores, record.slide_id) != scores_fingerprint(run, record, model)
        and not (card.encoder.features and _lacks_features(run, record))
    ]
    if due:
        for text in encoder_remarks(card.encoder.name):
            run.progress.note(text)
        total = sum(run.states[record.slide_id].tiles or 0 for record in due)
        with run.progress.stage("prediction", total, "tiles") as advance:
            (_predict_spread if run.recipe.compute.predict_workers else _predict_here)(run, due, model, advance)
        run.states.save()
    write_predictions(run, calibrate(run))
    return len(due)


def _lacks_features(run: Run, record: SlideRecord) -> bool:
    """Tell whether the stage before refused the slide's features; its reason is in the table of states."""
    row = run.states[record.slide_id]
    return row.state == "failed" and row.stage == "features"


def _predict_here(run: Run, due: Sequence[SlideRecord], model: str, advance: Callable[[int], None]) -> None:
    """Predict one slide after another, in this process and on one device."""
    device = choose_device(run.recipe.compute.device)
    predictor = Predictor(run.recipe, checkpoint_folder(run), model, device, run.progress.note)
    for record in due:
        work = partial(predictor, run, record, scores_fingerprint(run, record, model), advance)
        run.states.fence(record.slide_id, "predict", work)


def _predict_spread(run: Run, due: Sequence[SlideRecord], model: str, advance: Callable[[int], None]) -> None:
    """Predict slides in several processes, each of which loads the network once; start with the largest slides."""
    compute = run.recipe.compute
    threads = max(1, (os.cpu_count() or 1) // compute.predict_workers) if compute.scheduler is None else 1
    tiles = {record.slide_id: run.states[record.slide_id].tiles or 0 for record in due}
    jobs = [
        Job(
            record.slide_id,
            PREDICT_JOB,
            PredictTask(
                run.recipe, record, checkpoint_folder(run), model, scores_fingerprint(run, record, model), threads
            ),
            timeout_s=timeout_s(compute, tiles[record.slide_id]),
        )
        for record in sorted(due, key=lambda record: -tiles[record.slide_id])
    ]
    with spread(compute.model_copy(update={"workers": compute.predict_workers}), jobs) as work:
        for outcome in work.outcomes:
            if outcome is not None:
                _record(run, outcome)
                advance(tiles[outcome.job.name])


def _record(run: Run, outcome: JobOutcome) -> None:
    """Write the outcome of a slide into the table of states."""
    name, result, usage = outcome.job.name, outcome.result, outcome.result.usage
    before = run.states[name]
    earlier = before.attempts if before.state == "failed" and before.stage == "predict" else 0
    if not isinstance(result.value, Predicted):
        attempts = earlier + outcome.attempts
        run.states.fail(name, "predict", failure_of_job(outcome), seconds=usage.wall_s, attempts=attempts)
        return
    for text in result.value.notes:
        run.progress.note(text)
    done = {"state": "ok", "reason": "", "traceback": ""}
    took = {
        "seconds": result.value.seconds,
        "cpu_seconds": round(usage.cpu_s, 3),
        "rss_mb": round(usage.peak_rss_mb, 1),
    }
    run.states.update(name, stage="predict", attempts=earlier + outcome.attempts, **done, **took)
