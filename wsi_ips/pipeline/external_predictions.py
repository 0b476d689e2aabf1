"""Measure predictions of any tool: a CSV with a row per slide, a folder with detections per slide."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from wsi_ips.errors import EvaluationError, WsiIpsError, few
from wsi_ips.evaluation.froc import LEGACY_MPP, Detections, Matched, froc_with_interval, match_detections
from wsi_ips.evaluation.localisation import Localisation
from wsi_ips.evaluation.slide_evaluation import Groups, Scored, evaluate_slides, group_columns
from wsi_ips.evaluation.staging import NODE_LABELS, Node, Patients, stage_patients
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.geometry import Scale
from wsi_ips.labels import matched
from wsi_ips.manifest.manifest_csv import Manifest, read_manifest
from wsi_ips.manifest.slide_record import INVISIBLE, SlideRecord
from wsi_ips.manifest.splits import SPLITS
from wsi_ips.pipeline.evaluate_run import read_lesions
from wsi_ips.slides import open_slide
from wsi_ips.tables import listing, number_of, read_cells, read_table

COLUMNS = ("probability", "x", "y")  # of a table of detections; CAMELYON16 has this order and no header
# Columns of predictions that a misspelling would lose
KNOWN = ("slide_id", "label", "split", "patient_id", "predicted")
SUFFIXES = (".csv", ".tsv")


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
    if question.split not in SPLITS:
        raise EvaluationError(f"--split {question.split}: no such split; write {', '.join(SPLITS)}")
    rows = read_manifest(manifest) if manifest is not None else None
    found = Evaluation(None)
    if predictions is not None:
        table, lacking = read_predictions(predictions), list[str]()
        if rows is not None:
            table = _with_manifest(table, rows, question.split, lacking)
        found = evaluate_table(table, question, f"predictions {predictions}")
        found = replace(found, notes=(*found.notes, *lacking))
    if detections is not None:
        if rows is None:
            raise EvaluationError("detections need --manifest FILE, which names slides and annotations")
        records = [r for r in rows.records if r.split == question.split] or [r for r in rows.records if r.split is None]
        if not records:
            raise EvaluationError(
                f"manifest {manifest}: no slide has split `{question.split}`, and none is without a split"
            )
        notes: list[str] = []
        known = (question.positive,)
        negative = frozenset(r.slide_id for r in records if r.label and matched(r.label, known) not in known)
        where = evaluate_detections(detections, records, notes, negative=negative, legacy_spacing=legacy_spacing)
        found = replace(found, localisation=where, notes=(*found.notes, *notes))
    return found


def read_predictions(path: Path) -> pd.DataFrame:
    """Return a table of predictions as text cells, one row per slide; the index holds the numbers of the rows."""
    table = read_table(path, "predictions", EvaluationError, known=KNOWN, required=["slide_id"])
    table.names("slide_id")
    splits = table.words("split", SPLITS) if "split" in table.columns else None
    found = table.frame()
    for column in (name for name in KNOWN if name in found):
        hidden = [(row, cell) for row, cell in found[column].items() if re.search(INVISIBLE, cell)]
        if hidden:
            raise EvaluationError(
                f"predictions {path}, row {hidden[0][0]}, column `{column}`: {hidden[0][1]!a} holds characters "
                "that nobody sees; remove them"
            )
    return found if splits is None else found.assign(split=splits)


def _with_manifest(table: pd.DataFrame, manifest: Manifest, split: str, notes: list[str]) -> pd.DataFrame:
    """Add the columns that the table lacks from a manifest; slides of the split without a prediction are noted."""
    records = {r.slide_id: r for r in manifest.records}
    unknown = [name for name in table["slide_id"] if name not in records]
    if unknown:
        raise EvaluationError(
            f"manifest {manifest.path}: no row for {len(unknown)} predicted slides, the first is {unknown[0]}"
        )
    for column in ("label", "split", "patient_id"):
        if column not in table:
            table[column] = [getattr(records[name], column) or "" for name in table["slide_id"]]
    lacking = [name for name in records.keys() - {*table["slide_id"]} if records[name].split == split]
    _note(notes, sorted(lacking), f"slides of split `{split}` have no prediction and are not measured")
    return table


def evaluate_table(table: pd.DataFrame, question: TableQuestion, source: str = "predictions") -> Evaluation:
    """Measure the slides of a table of text cells; ``source`` names it in messages.

    Columns ``slide_id``, ``label``, and ``probability_POSITIVE`` or ``probability``; ``split`` if the threshold is to
    come from validation slides; ``patient_id`` if patients have several slides. With ``patient_id``, ``predicted``, and
    labels of lymph nodes in ``label`` and ``predicted``, patients are staged; then the probability may be missing.
    """
    notes: list[str] = []
    table = table.assign(
        **{
            column: [matched(cell, (question.positive,)) for cell in table[column]]
            for column in ("label", "predicted")
            if column in table
        }
    )
    nodes = _nodes(table, notes)
    score = _probabilities(table, question, source, optional=nodes is not None)
    has_splits = "split" in table and table["split"].any()
    parts = table["split"] if has_splits else pd.Series(question.split, index=table.index)
    patients = _stages(nodes[parts == question.split], notes) if nodes is not None else None
    if score is None:
        return Evaluation(None, patients=patients, notes=tuple(notes))
    if not (table["label"] == question.positive).any():
        raise EvaluationError(f"{source}: no slide has label `{question.positive}`; name the positive label")
    labelled = table["label"] != ""
    _note(notes, table["slide_id"][~labelled].tolist(), "slides without a label are left out")
    _note(notes, table["slide_id"][parts == ""].tolist(), "slides without a split are left out")
    others = Counter(table["label"][labelled & (table["label"] != question.positive)])
    if len(others) > 1:
        counts = ", ".join(f"{label} ({count})" for label, count in others.most_common(10))
        notes.append(f"{len(others)} labels count as negative, as they are not `{question.positive}`: {counts}")

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
    score = table[column].map(_number)
    bad = table[~score.between(0, 1)]
    if len(bad):
        raise EvaluationError(
            f"{source}, column `{column}`: {len(bad)} cells are not probabilities, written 0.5, the first in row "
            f"{bad.index[0]} of slide {bad['slide_id'].iloc[0]}: {bad[column].iloc[0]!r}"
        )
    return score


def _number(text: str) -> float:
    try:
        return number_of(text)
    except ValueError:
        return float("nan")


def _nodes(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame | None:
    """Return the table with labels of lymph nodes as :data:`NODE_LABELS` spells them; None where it holds others."""
    columns = ["label", "predicted"]
    if not {"patient_id", *columns} <= {*table.columns}:
        return None
    nodes = table.assign(**{name: [matched(cell, NODE_LABELS) for cell in table[name]] for name in columns})
    for column in columns:
        odd = nodes[~nodes[column].isin(["", *NODE_LABELS])]
        if len(odd):
            if nodes["label"].isin(NODE_LABELS[1:]).any():  # `negative` alone says nothing of lymph nodes
                cell = f"row {odd.index[0]}, column `{column}`: {odd[column].iloc[0]!r}"
                notes.append(f"no stages: {cell} is none of {', '.join(NODE_LABELS)}")
            return None
    return nodes if (nodes[columns] != "").any(axis=None) else None


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
    header. A slide without a file has no detection. A detection off its slide is a false positive.

    Raises
    ------
    EvaluationError
        A slide or its annotation cannot be read, or no lesion counts: a FROC without them would be too good.
    """
    if not folder.is_dir():
        raise EvaluationError(f"detections {folder}: no folder; give one with a file SLIDE_ID.csv per slide")
    files = _detection_files(folder)
    names = [r.slide_id for r in records]
    if not files.keys() & {*names}:
        raise EvaluationError(f"detections {folder}: no file is named after a slide, e.g. {names[0]}.csv")
    known = [r for r in records if r.is_fully_outlined or r.slide_id in negative]
    found = _matched(known, files, LEGACY_MPP if legacy_spacing else None)
    off = [f"{name} ({slide.outside} of {slide.detections})" for name, slide in found.items() if slide.outside]
    unknown = [r.slide_id for r in records if r not in known]
    _note(notes, off, "slides have detections off the slide, which count as false positives; is it level-0 pixels?")
    _note(notes, [n for n in found if n not in files], "slides have no file and count as slides without detections")
    _note(notes, unknown, "slides have neither an annotation nor a negative label and are not in the lesion metrics")
    _note(notes, sorted(files.keys() - {*names}), "files belong to no slide here and are not used")
    curve = froc_with_interval([*found.values()], notes)
    if curve is None:
        raise EvaluationError(f"detections {folder}: {notes[-1]}")
    return Localisation(lesions_given=curve)


def _matched(known: Sequence[SlideRecord], files: Mapping[str, Path], mpp: float | None) -> dict[str, Matched]:
    """Match the detections of each slide; refuse slides that cannot be measured, all of them in one message."""
    found, failed = dict[str, Matched](), list[str]()
    for record in known:
        name = record.slide_id
        given = read_detections(files[name]) if name in files else Detections(*np.zeros((3, 0)))
        try:
            with open_slide(record.path, mpp_override=record.mpp) as reader:
                info = reader.info
            scale = Scale(mpp, mpp) if mpp is not None else info.pyramid.mpp
            found[name] = match_detections(given, read_lesions(record, info.size_px0, info.bounds, scale))
        except (WsiIpsError, OSError) as error:
            failed.append(f"slide {name}: {error}")
    if failed:
        raise EvaluationError(
            listing(
                f"{len(failed)} of {len(known)} slides cannot be measured, and left out, their lesions would not count "
                "as missed; correct them, or take their rows out of the manifest",
                failed,
            )
        )
    return found


def _detection_files(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and files.setdefault(path.stem, path) != path:
            raise EvaluationError(
                f"detections {folder}: {files[path.stem].name} and {path.name} of one slide; keep one"
            )
    return files


def _note(notes: list[str], names: Sequence[str], what: str) -> None:
    if names:
        notes.append(f"{len(names)} {what}: {few(names)}")


def read_detections(path: Path) -> Detections:
    """Return the detections of one slide; an error names file and row."""
    lines = list(read_cells(path, "detections", EvaluationError))
    header = [cell.lower() for cell in lines[0][1]] if lines else []
    titled = set(COLUMNS) <= set(header)
    if any(header.count(name) > 1 for name in COLUMNS):
        raise EvaluationError(f"detections {path}: a column appears twice; keep one")
    width, order = (len(header), [header.index(name) for name in COLUMNS]) if titled else (3, [0, 1, 2])
    found = []
    for number, row in lines[titled:]:
        try:
            cells = [number_of(row[column]) for column in order]
            if any(row[width:]) or not np.isfinite(cells).all():
                raise ValueError("three numbers are expected")
        except (ValueError, IndexError) as error:
            raise EvaluationError(
                f"detections {path}, row {number}: `{','.join(row)}` is not `probability,x,y` ({error}); positions "
                "are level-0 pixels"
            ) from error
        found.append(cells)
    probability, x, y = np.array(found, np.float64).reshape(-1, 3).T
    return Detections(x, y, probability)
