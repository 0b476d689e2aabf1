"""Measure predictions of any tool: a CSV with a row per slide, a folder with detections per slide."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_ips.errors import EvaluationError, WsiIpsError
from wsi_ips.evaluation import Detections, Evaluation, Lesions, Localisation, match_detections
from wsi_ips.evaluation.froc import LEGACY_MPP, froc_with_interval
from wsi_ips.evaluation.prediction_table import TableQuestion, evaluate_table
from wsi_ips.geometry import Scale
from wsi_ips.manifest.manifest_csv import Manifest, read_manifest
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.evaluate_run import read_lesions
from wsi_ips.slides import open_slide

COLUMNS = ("probability", "x", "y")
"""Columns of a table of detections; CAMELYON16 has them in this order and without a header."""


def evaluate_files(
    question: TableQuestion,
    *,
    predictions: Path | None = None,
    detections: Path | None = None,
    manifest: Path | None = None,
    legacy_spacing: bool = False,
) -> Evaluation:
    """Measure a table of predictions, a folder of detections, or both.

    Parameters
    ----------
    question
        Positive label, subgroups, split and threshold. For detections, a slide with another label counts as without
        tumour.
    predictions
        CSV, see :func:`wsi_ips.evaluation.prediction_table.evaluate_table`.
    detections
        Folder, see :func:`evaluate_detections`.
    manifest
        Fills in what the predictions lack (``label``, ``split``, ``patient_id``). Required for detections, whose slides
        and annotations it names.
    legacy_spacing
        Take the µm/px of the challenge's script for lesions, not that of each slide.

    Raises
    ------
    EvaluationError
        A file cannot be used, or detections have no manifest.
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
    """Read a table of predictions as text cells.

    Raises
    ------
    EvaluationError
        No CSV, no column ``slide_id``, or a slide with two rows.
    """
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


def evaluate_detections(
    folder: Path,
    records: Sequence[SlideRecord],
    notes: list[str],
    *,
    negative: frozenset[str],
    legacy_spacing: bool = False,
) -> Localisation:
    """Compute the FROC of detections on the annotated and negative slides.

    Parameters
    ----------
    folder
        A file ``SLIDE_ID.csv`` per slide with ``probability, x, y`` (level-0 pixels), with or without a header. A slide
        without a file has no detection.
    records, negative
        Slides to report on, and those known to hold no tumour.
    notes
        What is left out is added here.
    legacy_spacing
        As for :func:`evaluate_files`.

    Raises
    ------
    EvaluationError
        No file belongs to a slide, or a file cannot be read (the message names file and row).
    """
    if not folder.is_dir():
        raise EvaluationError(f"detections {folder}: no folder; give one with a file SLIDE_ID.csv per slide")
    files = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    names = [r.slide_id for r in records]
    if not files.keys() & {*names}:
        raise EvaluationError(f"detections {folder}: no file is named after a slide, e.g. {names[0]}.csv")
    known = [r for r in records if r.annotation is not None or r.slide_id in negative]
    matched, silent = [], []
    for record in known:
        found = read_detections(files[record.slide_id]) if record.slide_id in files else Detections(*np.zeros((3, 0)))
        try:
            lesions = _lesions_of_slide(record, Scale(LEGACY_MPP, LEGACY_MPP) if legacy_spacing else None)
            matched.append(match_detections(found, lesions))
        except (WsiIpsError, OSError) as error:
            notes.append(f"slide {record.slide_id} is not in the lesion metrics: {error}")
            continue
        if record.slide_id not in files:
            silent.append(record.slide_id)
    unknown = [r.slide_id for r in records if r not in known]
    _note(notes, silent, "slides have no file and count as without detections")
    _note(notes, unknown, "slides have neither an annotation nor a negative label and are not in the lesion metrics")
    _note(notes, sorted(files.keys() - {*names}), "files belong to no slide here and are not used")
    return Localisation(lesions_given=froc_with_interval(matched, notes))


def _lesions_of_slide(record: SlideRecord, mpp: Scale | None) -> Lesions:
    """Read the lesions of a slide that is not tiled; ``mpp`` in place of its own."""
    with open_slide(record.path, mpp_override=record.mpp) as reader:
        size, bounds, own = reader.info.size_px0, reader.info.bounds, reader.info.pyramid.mpp
    return read_lesions(record, size, bounds, mpp or own)


def _note(notes: list[str], names: Sequence[str], what: str) -> None:
    if names:
        notes.append(f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")


def read_detections(path: Path) -> Detections:
    """Read the detections of one slide.

    Raises
    ------
    EvaluationError
        A row is no detection; the message names file and row.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise EvaluationError(f"detections {path}: no CSV table ({error})") from error
    order: list[int] = [0, 1, 2]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    titled = set(COLUMNS) <= set(header)
    if titled:
        order = [header.index(name) for name in COLUMNS]
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
