"""Figures of predictions from anywhere: a CSV with a row per slide, a folder with detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_ips.errors import EvaluationError
from wsi_ips.evaluation import Evaluation, Patients, Scored, evaluate_slides
from wsi_ips.evaluation.staging import NODE_LABELS
from wsi_ips.manifest import Manifest, read_manifest
from wsi_ips.pipeline.evaluation.detections import evaluate_detections
from wsi_ips.pipeline.evaluation.evaluate import SITE_COLUMNS, stage_patients


def evaluate_others(
    predictions: Path | None,
    *,
    manifest: Path | None = None,
    detections: Path | None = None,
    positive: str,
    by: Sequence[str] = (),
    split: str = "test",
    threshold: float | None = None,
    legacy_spacing: bool = False,
) -> Evaluation:
    """Figures of anybody's predictions, detections, or both.

    Parameters
    ----------
    predictions
        As for :func:`evaluate_table`.
    manifest
        Fills in what the predictions lack (``label``, ``split``, ``patient_id``); needed for detections, whose slides
        and annotations it names.
    detections
        As for :func:`wsi_ips.pipeline.evaluation.detections.evaluate_detections`; a slide whose label is not
        ``positive`` counts as without tumour.
    positive, by, split, threshold
        As for :func:`evaluate_table`.
    legacy_spacing
        As in :func:`wsi_ips.pipeline.evaluation.evaluate.evaluate_run`.

    Raises
    ------
    EvaluationError
        As those; or detections without a manifest.
    """
    rows = read_manifest(manifest) if manifest is not None else None
    found = Evaluation(None)
    if predictions is not None:
        table = _with_manifest(_read(predictions), rows)
        found = _evaluate(table, predictions, positive=positive, by=by, split=split, threshold=threshold)
    if detections is not None:
        if rows is None:
            raise EvaluationError("detections need --manifest FILE, which says where slides and annotations are")
        records = [r for r in rows.records if r.split == split] or [r for r in rows.records if r.split is None]
        negative = frozenset(r.slide_id for r in records if r.label and r.label != positive)
        notes: list[str] = []
        if not records:
            raise EvaluationError(f"manifest {manifest}: no slide has split `{split}`, and none is without a split")
        where = evaluate_detections(detections, records, notes, negative=negative, legacy_spacing=legacy_spacing)
        found = replace(found, localisation=where, notes=(*found.notes, *notes))
    return found


def evaluate_table(
    path: Path, *, positive: str, by: Sequence[str] = (), split: str = "test", threshold: float | None = None
) -> Evaluation:
    """Figures of anybody's predictions.

    Parameters
    ----------
    path
        CSV with columns ``slide_id``, ``label``, ``probability_POSITIVE`` or ``probability``; ``split`` where the
        threshold is to come from validation slides; ``patient_id`` where patients have several slides. Rows without a
        label are left out, with a note. With ``patient_id`` and ``predicted``, and labels of lymph nodes in ``label``
        and ``predicted``, patients are staged; then the probability may be missing.
    positive
        The label that counts as positive; all others are negative.
    by
        Columns that make subgroups, beside those of sites.
    split
        Part to report on; everything where there is no column ``split``.
    threshold
        Given from outside instead.

    Raises
    ------
    EvaluationError
        A column is missing, a row is not usable (named), or there is nothing to compare.
    """
    return _evaluate(_read(path), path, positive=positive, by=by, split=split, threshold=threshold)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"predictions {path}: no CSV table ({error})") from error
    if "slide_id" not in table:
        raise EvaluationError(f"predictions {path}: no column `slide_id`; it has {', '.join(table.columns)}")
    twice = table["slide_id"][table["slide_id"].duplicated()]
    if len(twice):
        raise EvaluationError(f"predictions {path}: slide {twice.iloc[0]} stands there twice; keep one row per slide")
    return table


def _with_manifest(table: pd.DataFrame, manifest: Manifest | None) -> pd.DataFrame:
    """The table with the columns it lacks, taken from a manifest."""
    if manifest is None:
        return table
    records = {r.slide_id: r for r in manifest.records}
    strange = [name for name in table["slide_id"] if name not in records]
    if strange:
        raise EvaluationError(
            f"manifest {manifest.path}: no row for {len(strange)} predicted slides, the first is {strange[0]}"
        )
    for column in ("label", "split", "patient_id"):
        if column not in table:
            table[column] = [getattr(records[name], column) or "" for name in table["slide_id"]]
    if not table["split"].any():
        table = table.drop(columns="split")
    return table


def _evaluate(
    table: pd.DataFrame, path: Path, *, positive: str, by: Sequence[str], split: str, threshold: float | None
) -> Evaluation:
    named = f"probability_{positive}"
    column = named if named in table else "probability"
    nodes = _are_nodes(table)
    missing = [name for name in ("label", *([] if nodes else [column]), *by) if name not in table]
    if missing:
        raise EvaluationError(
            f"predictions {path}: no column {', '.join(f'`{m}`' for m in missing)}; it has {', '.join(table.columns)}"
        )
    parts = table["split"] if "split" in table else pd.Series(split, index=table.index)
    notes: list[str] = []
    patients = _stages(table[parts == split], notes) if nodes else None
    if column not in table:
        return Evaluation(None, patients=patients, notes=tuple(notes))
    score = pd.to_numeric(table[column], errors="coerce")
    bad = table["slide_id"][~score.between(0, 1)]
    if len(bad):
        raise EvaluationError(
            f"predictions {path}, column `{column}`: {len(bad)} cells are no probability, the first of slide "
            f"{bad.iloc[0]}"
        )
    labelled = table["label"] != ""
    if not labelled.all():
        notes.append(f"{int((~labelled).sum())} slides without a label are left out")
    if not (table["label"] == positive).any():
        raise EvaluationError(f"predictions {path}: no slide has label `{positive}`; name the positive label")

    def scored(rows: pd.Series[bool]) -> Scored:
        truth = (table["label"][rows] == positive).to_numpy().astype(np.int64)
        of = table["patient_id"][rows].tolist() if "patient_id" in table else None
        return Scored(truth, score[rows].to_numpy(np.float64), of)

    test, validation = labelled & (parts == split), labelled & (parts == "val") & (split != "val")
    sites = [name for name in SITE_COLUMNS if name in table and name not in by and len(set(table[name][test])) > 1]
    groups = {name: table[name][test].tolist() for name in (*by, *sites)}
    slides = evaluate_slides(scored(test), scored(validation), groups=groups, threshold=threshold)
    return Evaluation(slides, patients=patients, notes=(*slides.notes, *notes))


def _are_nodes(table: pd.DataFrame) -> bool:
    """Whether the table says what lymph nodes of patients hold."""
    if not {"patient_id", "label", "predicted"} <= set(table.columns):
        return False
    labels = {*table["label"], *table["predicted"]} - {""}
    return bool(labels) and labels <= set(NODE_LABELS)


def _stages(table: pd.DataFrame, notes: list[str]) -> Patients | None:
    whole = (table[["patient_id", "label", "predicted"]] != "").all(axis=1)
    if not whole.all():
        notes.append(f"{int((~whole).sum())} nodes without patient, label or prediction are in no stage")
    rows = table[whole].rename(columns={"label": "stage"})
    return stage_patients(rows[["patient_id", "stage", "predicted"]], notes) if len(rows) else None
