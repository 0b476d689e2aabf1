"""Lesions found by anybody: a table of detections per slide against the annotations of a manifest."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wsi_ips.errors import EvaluationError, WsiIpsError
from wsi_ips.evaluation import Detections, Localisation, match_detections
from wsi_ips.geometry import Scale
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.evaluation.localise import LEGACY_MPP, froc_with_interval, read_lesions
from wsi_ips.slides import open_slide

COLUMNS = ("probability", "x", "y")
"""Of a table of detections, as CAMELYON16 had them: without a header, in this order."""


def evaluate_detections(
    folder: Path,
    records: Iterable[SlideRecord],
    notes: list[str],
    *,
    negative: frozenset[str],
    legacy_spacing: bool = False,
) -> Localisation:
    """FROC of detections from elsewhere.

    Parameters
    ----------
    folder
        A file ``SLIDE_ID.csv`` per slide with ``probability, x, y`` (level-0 pixels), with a header or without. A slide
        without a file has no detection.
    records
        Slides to report on; those that are annotated, or negative, are used.
    notes
        What is left out is told there.
    negative
        Slides known to hold no tumour.
    legacy_spacing
        As in :func:`wsi_ips.pipeline.evaluation.evaluate.evaluate_run`.

    Raises
    ------
    EvaluationError
        No file fits a slide, a file cannot be read (named, with its row), or no lesion counts.
    """
    if not folder.is_dir():
        raise EvaluationError(f"detections {folder}: no folder; give one with a file SLIDE_ID.csv per slide")
    listed = list(records)
    files = {path.stem: path for path in sorted(folder.glob("*.csv"))}
    if not any(r.slide_id in files for r in listed):
        raise EvaluationError(f"detections {folder}: no file is named as a slide, e.g. {listed[0].slide_id}.csv")
    matched, unknown, silent = [], [], []
    for record in listed:
        if record.annotation is None and record.slide_id not in negative:
            unknown.append(record.slide_id)
            continue
        found = read_detections(files[record.slide_id]) if record.slide_id in files else _NONE
        try:
            with open_slide(record.path, mpp_override=record.mpp) as reader:
                size, bounds, mpp = reader.info.size_px0, reader.info.bounds, reader.info.pyramid.mpp
            lesions = read_lesions(record, size, bounds, Scale(LEGACY_MPP, LEGACY_MPP) if legacy_spacing else mpp)
            matched.append(match_detections(found, lesions))
        except (WsiIpsError, OSError) as error:
            notes.append(f"slide {record.slide_id} is in no figure of lesions: {error}")
            continue
        if record.slide_id not in files:
            silent.append(record.slide_id)
    surplus = sorted(files.keys() - {r.slide_id for r in listed})
    for what, names in (
        ("slides have no file and count as without detections", silent),
        ("slides with neither an annotation nor a negative label are in no figure of lesions", unknown),
        ("files belong to no slide here and are not used", surplus),
    ):
        if names:
            notes.append(f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
    return Localisation(lesions_given=froc_with_interval(matched, notes))


_NONE = Detections(np.zeros(0), np.zeros(0), np.zeros(0))


def read_detections(path: Path) -> Detections:
    """Detections of one slide.

    Raises
    ------
    EvaluationError
        A row that is no detection; names file and row.
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
