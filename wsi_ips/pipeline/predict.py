"""Stage ``predict``: label and tile scores of every slide that is to be predicted."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from wsi_ips.errors import CheckpointError, FeaturesError, ManifestError
from wsi_ips.inference import SlideScores, predict_slide, read_scores, stored_fingerprint, write_scores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model import ModelCard, load_checkpoint, read_card
from wsi_ips.model.card import checkpoint_fingerprint
from wsi_ips.model.int8 import Int8Exporter
from wsi_ips.model.presets import remarks
from wsi_ips.pipeline.feature_source import FeatureSource
from wsi_ips.pipeline.features import feature_source
from wsi_ips.pipeline.run import Run
from wsi_ips.pipeline.scored import checkpoint_folder, predicted, scores_fingerprint
from wsi_ips.provenance import atomic_path
from wsi_ips.scanning import ChunkLimit, choose_device
from wsi_ips.tiles import SlideTiles

__all__ = ["checkpoint_folder", "predict_stage", "predicted", "scores_fingerprint", "to_predict", "write_predictions"]


def to_predict(run: Run, names: Sequence[str] = ()) -> list[SlideRecord]:
    """Slides to predict: the named ones, else those of the recipe's splits and those without a split.

    Raises
    ------
    ManifestError
        A name is no slide_id of the manifest.
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
    """Predict all slides whose scores are not up to date; the number of slides worked on.

    Raises
    ------
    CheckpointError
        There is no checkpoint, or it was made for other classes or another scale.
    """
    card = read_card(checkpoint_folder(run))
    check_scale(run, card)
    net, card = load_checkpoint(checkpoint_folder(run), tasks=run.recipe.labels.tasks)
    model = checkpoint_fingerprint(checkpoint_folder(run))
    due = [
        record
        for record in run.with_tiles(to_predict(run, names))
        if stored_fingerprint(run.folder.scores, record.slide_id) != scores_fingerprint(run, record, model)
        and not (card.encoder.features and _lacks_features(run, record))
    ]
    if due:
        for text in remarks(card.encoder.name):
            run.progress.note(text)
        device = choose_device(run.recipe.compute.device)
        net.to(device)
        int8 = Int8Exporter(net.encoder, card.patch_px) if run.recipe.predict.scan_precision == "int8" else None
        features = feature_source(run, net.encoder) if run.recipe.model.input == "features" else None
        limit = ChunkLimit(run.recipe.compute.chunk_size, run.progress.note)
        total = sum(run.states[record.slide_id].tiles or 0 for record in due)
        with run.progress.stage("prediction", total, "tiles") as advance:
            for record in due:

                def work(record: SlideRecord = record) -> None:
                    scores = predict_slide(
                        net,
                        card,
                        _input(run, record, card, features),
                        compute=run.recipe.compute,
                        device=device,
                        fingerprint=scores_fingerprint(run, record, model),
                        on_tiles=advance,
                        int8=int8,
                        limit=limit,
                    )
                    if scores.int8:
                        used = "" if scores.int8.holds else "; too far from fp32, which was used instead"
                        run.progress.note(f"slide {record.slide_id}: int8 scan: {scores.int8}{used}")
                    write_scores(run.folder.scores, scores)

                run.states.fence(record.slide_id, "predict", work)
        run.states.save()
    write_predictions(run)
    return len(due)


def _lacks_features(run: Run, record: SlideRecord) -> bool:
    """Whether the stage before refused the slide's features, and said why."""
    row = run.states[record.slide_id]
    return row.state == "failed" and row.stage == "features"


def _input(run: Run, record: SlideRecord, card: ModelCard, features: FeatureSource | None) -> SlideTiles:
    """Stored features of a slide where they are up to date, else its pixels, of which a model makes the same.

    Raises
    ------
    FeaturesError
        The model knows imported features only, and this slide has none, or those of another encoder.
    """
    if features is not None and features.has(record):
        tiles = features.tiles(record)
        if not card.encoder.features or tiles.features.encoder == card.encoder.name:
            return tiles
        raise FeaturesError(
            f"slide {record.slide_id}: features of {tiles.features.encoder}, the model was trained on those of "
            f"{card.encoder.name}; import the same"
        )
    if card.encoder.features:
        raise FeaturesError(
            f"slide {record.slide_id}: the model was trained on features of {card.encoder.name} and takes no pixels; "
            "set `features.imported` to a folder with a feature file of this slide, and `model.input: features`"
        )
    return run.tiles(record)


def check_scale(run: Run, card: ModelCard) -> None:
    """Refuse a checkpoint trained at another scale or patch size than the recipe's tiles.

    Raises
    ------
    CheckpointError
        Names both.
    """
    tiles = run.recipe.tiles
    if (card.patch_mpp, card.patch_px) != (tiles.mpp, tiles.patch_px):
        raise CheckpointError(
            f"checkpoint {card.model_id}: trained on {card.patch_px} px at {card.patch_mpp} µm/px, the recipe "
            f"tiles {tiles.patch_px} px at {tiles.mpp} µm/px; set `tiles.mpp` and `tiles.patch_px` to those of the "
            "checkpoint"
        )


def write_predictions(run: Run) -> None:
    """Write ``predictions.csv``: one row per predicted slide, in the order of the manifest."""
    rows = [_row(run, record, read_scores(run.folder.scores, record.slide_id)) for record in predicted(run)]
    first, *further = run.recipe.labels.tasks
    columns = ["slide_id", *[f"probability_{c}" for c in first.classes], "predicted", "label"]
    for task in further:
        columns += [f"{task.name}_probability_{c}" for c in task.classes]
        columns += [f"{task.name}_predicted", f"{task.name}_label"]
    columns += ["split", "tiles", "seconds"]
    with atomic_path(run.folder.predictions) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False, lineterminator="\n")


def _row(run: Run, record: SlideRecord, scores: SlideScores) -> dict[str, object]:
    row: dict[str, object] = {"slide_id": record.slide_id}
    truths = run.truths[record.slide_id]
    for task, probability, truth in zip(scores.tasks, scores.probabilities, truths, strict=True):
        prefix = "" if task is scores.tasks[0] else f"{task.name}_"
        row |= {f"{prefix}probability_{c}": round(p, 6) for c, p in zip(task.classes, probability, strict=True)}
        row |= {f"{prefix}predicted": task.answer(probability), f"{prefix}label": task.text(truth)}
    return row | {"split": record.split, "tiles": len(scores.attention_logits), "seconds": scores.seconds}
