"""Measure predictions of any tool: a CSV with a row per slide, a folder with detections per slide."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_ips.errors import EvaluationError, WsiIpsError
from wsi_ips.evaluation.froc import LEGACY_MPP, Detections, froc_with_interval, match_detections
from wsi_ips.evaluation.localisation import Localisation
from wsi_ips.evaluation.slide_evaluation import Groups, Scored, evaluate_slides, group_columns
from wsi_ips.evaluation.staging import NODE_LABELS, Node, Patients, stage_patients
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.geometry import Scale
from wsi_ips.manifest.manifest_csv import Manifest, read_manifest
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.evaluate_run import read_lesions
from wsi_ips.slides import open_slide

COLUMNS = ("probability", "x", "y")  # of a table of detections; CAMELYON16 has this order and no header


@dataclass(frozen=True)
class TableQuestion:
    """Options for measuring a table of predictions."""

    positive: str  # label that counts as positive; all others are negative
    by: Sequence[str] = ()  # columns that make subgroups, in addition to those of sites
    split: str = "test"  # split to report on; all slides where there is no column ``split``
    threshold: float | None = None  # threshold in place of the one from the validation slides


def evaluate_files(
    question: TableQuestion,
    *,
    predictions: Path | None = None,
    detections: Path | None = None,
    manifest: Path | None = None,
    legacy_spacing: bool = False,
) -> Evaluation:
    """Measure a table of predictions, a folder of detections, or both.

    The manifest fills in what the predictions lack (``label``, ``split``, ``patient_id``). Detections require it, as it
    names slides and annotations; a slide with another label than the positive one counts as without tumour.
    """
    rows = read_manifest(manifest) if manifest is not None else None
    found = Evaluation(None)
    if predictions is not None:
        table = _with_manifest(read_predictions(predictions), rows)
        found = evaluate_table(table, question, f"predictions {predictions}")
    if detections is not None:
        if rows is None:
            raise EvaluationError("detections need --manifest FILE, which names slides and annotations")
        records = [r for r in rows.records if r.split == question.split] or [r for r in rows.records if r.split is None]
        if not records:
            raise EvaluationError(
                f"manifest {manifest}: no slide has split `{question.split}`, and none is without a split"
            )
        notes: list[str] = []
        negative = frozenset(r.slide_id for r in records if r.label and r.label != question.positive)
        where = evaluate_detections(detections, records, notes, negative=negative, legacy_spacing=legacy_spacing)
        found = replace(found, localisation=where, notes=(*found.notes, *notes))
    return found


def read_predictions(path: Path) -> pd.DataFrame:
    """Return a table of predictions as text cells, with one row per slide."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"predictions {path}: no CSV table ({error})") from error
    if "slide_id" not in table:
        raise EvaluationError(f"predictions {path}: no column `slide_id`; it has {', '.join(table.columns)}")
    twice = table["slide_id"][table["slide_id"].duplicated()]
    if len(twice):
        raise EvaluationError(f"predictions {path}: slide {twice.iloc[0]} has two rows; keep one row per slide")
    return table


def _with_manifest(table: pd.DataFrame, manifest: Manifest | None) -> pd.DataFrame:
    """Add the columns that the table lacks from a manifest."""
    if manifest is None:
        return table
    records = {r.slide_id: r for r in manifest.records}
    unknown = [name for name in table["slide_id"] if name not in records]
    if unknown:
        raise EvaluationError(
            f"manifest {manifest.path}: no row for {len(unknown)} predicted slides, the first is {unknown[0]}"
        )
    for column in ("label", "split", "patient_id"):
        if column not in table:
            table[column] = [getattr(records[name], column) or "" for name in table["slide_id"]]
    return table if table["split"].any() else table.drop(columns="split")


def evaluate_table(table: pd.DataFrame, question: TableQuestion, source: str = "predictions") -> Evaluation:
    """Measure the slides of a table of text cells; ``source`` names it in messages.

    Columns ``slide_id``, ``label``, and ``probability_POSITIVE`` or ``probability``; ``split`` if the threshold is to
    come from validation slides; ``patient_id`` if patients have several slides. With ``patient_id``, ``predicted``, and
    labels of lymph nodes in ``label`` and ``predicted``, patients are staged; then the probability may be missing.
    """
    labels = {*table.get("label", ()), *table.get("predicted", ())} - {""}
    nodes = {"patient_id", "label", "predicted"} <= {*table.columns} and bool(labels) and labels <= {*NODE_LABELS}
    notes: list[str] = []
    score = _probabilities(table, question, source, optional=nodes)
    parts = table["split"] if "split" in table else pd.Series(question.split, index=table.index)
    patients = _stages(table[parts == question.split], notes) if nodes else None
    if score is None:
        return Evaluation(None, patients=patients, notes=tuple(notes))
    labelled = table["label"] != ""
    if not labelled.all():
        notes.append(f"{int((~labelled).sum())} slides without a label are left out")
    if not (table["label"] == question.positive).any():
        raise EvaluationError(f"{source}: no slide has label `{question.positive}`; name the positive label")

    def scored(rows: pd.Series[bool]) -> Scored:
        truth = (table["label"][rows] == question.positive).to_numpy().astype(np.int64)
        of = table["patient_id"][rows].tolist() if "patient_id" in table else None
        return Scored(truth, np.asarray(score[rows], np.float64), of)

    test, validation = labelled & (parts == question.split), labelled & (parts == "val") & (question.split != "val")
    rows = [{str(name): str(cell) for name, cell in row.items()} for row in table[test].to_dict("records")]
    groups = Groups(group_columns(rows, question.by))
    slides = evaluate_slides(scored(test), scored(validation), groups=groups, threshold=question.threshold)
    return Evaluation(slides, patients=patients, notes=(*slides.notes, *notes))


def _probabilities(
    table: pd.DataFrame, question: TableQuestion, source: str, *, optional: bool
) -> pd.Series[float] | None:
    """Return the probability of the positive label per row; None where there is none and none is needed."""
    named = f"probability_{question.positive}"
    column = named if named in table else "probability"
    wanted = ("label", *(() if optional else (column,)), *question.by)
    missing = [f"`{name}`" for name in wanted if name not in table]
    if missing:
        raise EvaluationError(f"{source}: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    if column not in table:
        return None
    score = pd.to_numeric(table[column], errors="coerce")
    bad = table["slide_id"][~score.between(0, 1)]
    if len(bad):
        raise EvaluationError(
            f"{source}, column `{column}`: {len(bad)} cells are not probabilities, the first of slide {bad.iloc[0]}"
        )
    return score


def _stages(table: pd.DataFrame, notes: list[str]) -> Patients | None:
    columns = ["patient_id", "label", "predicted"]
    whole = (table[columns] != "").all(axis=1)
    if not whole.all():
        notes.append(f"{int((~whole).sum())} nodes without patient, label or prediction are in no stage")
    nodes = [Node(*row) for row in table.loc[whole, columns].itertuples(index=False)]
    return stage_patients(nodes, notes) if nodes else None


def evaluate_detections(
    folder: Path,
    records: Sequence[SlideRecord],
    notes: list[str],
    *,
    negative: frozenset[str],
    legacy_spacing: bool = False,
) -> Localisation:
    """Return the FROC of detections on the annotated and negative slides; what is left out is added to ``notes``.

    The folder has a file ``SLIDE_ID.csv`` per slide with ``probability, x, y`` (level-0 pixels), with or without a
    header. A slide without a file has no detection.
    """
    if not folder.is_dir():
        raise EvaluationError(f"detections {folder}: no folder; give one with a file SLIDE_ID.csv per slide")
    files = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    names = [r.slide_id for r in records]
    if not files.keys() & {*names}:
        raise EvaluationError(f"detections {folder}: no file is named after a slide, e.g. {names[0]}.csv")
    known = [r for r in records if r.is_fully_outlined or r.slide_id in negative]
    matched, silent = [], []
    for record in known:
        found = read_detections(files[record.slide_id]) if record.slide_id in files else Detections(*np.zeros((3, 0)))
        try:
            with open_slide(record.path, mpp_override=record.mpp) as reader:
                info = reader.info
            mpp = Scale(LEGACY_MPP, LEGACY_MPP) if legacy_spacing else info.pyramid.mpp
            matched.append(match_detections(found, read_lesions(record, info.size_px0, info.bounds, mpp)))
        except (WsiIpsError, OSError) as error:
            notes.append(f"slide {record.slide_id} is not in the lesion metrics: {error}")
            continue
        if record.slide_id not in files:
            silent.append(record.slide_id)
    unknown = [r.slide_id for r in records if r not in known]
    _note(notes, silent, "slides have no file and count as slides without detections")
    _note(notes, unknown, "slides have neither an annotation nor a negative label and are not in the lesion metrics")
    _note(notes, sorted(files.keys() - {*names}), "files belong to no slide here and are not used")
    return Localisation(lesions_given=froc_with_interval(matched, notes))


def _note(notes: list[str], names: Sequence[str], what: str) -> None:
    if names:
        notes.append(f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")


def read_detections(path: Path) -> Detections:
    """Return the detections of one slide; an error names file and row."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise EvaluationError(f"detections {path}: no CSV table ({error})") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    titled = set(COLUMNS) <= set(header)
    order = [header.index(name) for name in COLUMNS] if titled else [0, 1, 2]
    found = []
    for number, row in enumerate(rows[titled:], 1 + titled):
        if not any(cell.strip() for cell in row):
            continue
        try:
            found.append([float(row[column]) for column in order])
        except (ValueError, IndexError) as error:
            raise EvaluationError(
                f"detections {path}, row {number}: `{','.join(row)}` is not `probability,x,y`; positions are level-0 "
                "pixels"
            ) from error
    probability, x, y = np.array(found, np.float64).reshape(-1, 3).T
    return Detections(x, y, probability)
