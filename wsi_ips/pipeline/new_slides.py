"""Predict slides of a file, folder or manifest with only a model's folder, which pins the settings.

The result is a run folder like any other, with the recipe and the manifest that were used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from wsi_ips.config import Recipe, load_recipe
from wsi_ips.config.recipe import RECIPE_NAME, parse_yaml
from wsi_ips.errors import ManifestError, RecipeError, SlideNotFoundError
from wsi_ips.inference.preparation import pinned_sections
from wsi_ips.labels import Task
from wsi_ips.manifest.discovery import discover_slides
from wsi_ips.manifest.folder_files import dicom_series
from wsi_ips.manifest.manifest_csv import FILE_COLUMNS, read_manifest, read_rows
from wsi_ips.manifest.slide_record import named_slide
from wsi_ips.model.checkpoint_card import CARD_NAME, ModelCard, read_card
from wsi_ips.provenance import atomic_write_text
from wsi_ips.slides.source import is_url, slide_name
from wsi_ips.tables import table_text

MANIFEST_NAME = "manifest.csv"
MARK = "# Written by `wsi-ips predict`: the settings are the model's. Every command takes this file, or its folder."
ADJUSTABLE = ("compute.", "heatmap.")  # keys that may be set beside a model: they change no pixel that the network sees
Row = dict[str, str]  # text of a manifest row by column; paths are absolute


@dataclass(frozen=True)
class NewSlides:
    """The requested slides as a run."""

    recipe: Recipe  # recipe of the run folder
    names: tuple[str, ...]  # slide_ids of the requested slides, in order
    notes: tuple[str, ...]  # notes on their rows for the user


def bundle_folder(path: Path) -> Path:
    """Return the model's folder at a path, which may also be the run folder that contains it."""
    inner = path / "model"
    return inner if not (path / CARD_NAME).exists() and (inner / CARD_NAME).exists() else path


def default_output(bundle: Path) -> Path:
    """Return the default folder for the predictions of a model, inside the working folder."""
    return Path("runs") / f"predicted-{read_card(bundle).model_id}"


def new_slides(
    targets: Sequence[str],
    bundle: Path,
    output: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    mpp: float | None = None,
) -> NewSlides:
    """Write recipe and manifest of a run folder for some slides; slides of earlier calls stay in it.

    Targets are slide files, URLs, folders of slides and manifests (.csv). The run folder is new, empty, or that of an
    earlier call with the same model. ``mpp`` is the scale (µm per level-0 pixel) of slides whose files do not state it.
    """
    for key in overrides or {}:
        if not key.startswith(ADJUSTABLE):
            raise RecipeError(
                f"--set {key}: is pinned by the model; without a recipe only `compute.*` and `heatmap.*` can be set"
            )
    card = read_card(bundle)
    content = _recipe_of(card, bundle)
    _require_own_folder(output, content)
    notes: list[str] = []
    asked = _merged([], [row for target in targets for row in _rows(target, notes)])
    scale = {} if mpp is None else {"mpp": str(mpp)}
    rows = _as_test_slides([_with_known_labels(row, card.tasks, notes) | scale for row in asked], notes)
    known = _manifest_rows(output / MANIFEST_NAME) if (output / MANIFEST_NAME).exists() else []
    _write(output, content, _merged(known, rows), card.tasks)
    recipe = load_recipe(output / RECIPE_NAME, dict(overrides or {}))
    return NewSlides(recipe, tuple(row["slide_id"] for row in rows), tuple(notes))


def _rows(target: str, notes: list[str]) -> list[Row]:
    """Return the rows of one target."""
    if is_url(target):
        return [{"slide_id": named_slide(PurePosixPath(slide_name(target)).stem, target).slide_id, "path": target}]
    path = Path(target).expanduser()
    if path.is_dir():
        rows = discover_slides(path).to_dict("records")
        texts = [{str(name): str(value) for name, value in row.items() if value is not None} for row in rows]
        return _one_per_series(texts, notes)
    if not path.exists():
        raise SlideNotFoundError(f"{target}: no such slide, folder or manifest")
    if path.suffix.lower() == ".csv":
        return _manifest_rows(path)
    return [{"slide_id": named_slide(path.stem, path).slide_id, "path": str(path.resolve())}]


def _one_per_series(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """Keep the first file of each DICOM slide, which opens all of them."""
    first: dict[str, str] = {}
    found = []
    for row in rows:
        series = dicom_series(Path(row["path"]))
        if series is not None and first.setdefault(series, row["slide_id"]) != row["slide_id"]:
            notes.append(f"{row['slide_id']}: of the same DICOM series as {first[series]}, so part of that slide")
        else:
            found.append(row)
    return found


def _manifest_rows(path: Path) -> list[Row]:
    """Return all cells of a manifest, unknown columns included, with absolute paths."""
    records = read_manifest(path, leaks=("patient", "content")).records
    cells = {row.cells["slide_id"]: row.cells for row in read_rows(path, label_column="label")}
    rows = []
    for record in records:
        row = {name: text for name, text in cells[record.slide_id].items() if name and text}
        row["path"] = record.path if isinstance(record.path, str) else str(Path(record.path).resolve())
        row |= {name: str(file.resolve()) for name in FILE_COLUMNS if (file := getattr(record, name)) is not None}
        rows.append(row)
    return rows


def _with_known_labels(row: Row, tasks: Sequence[Task], notes: list[str]) -> Row:
    """Drop labels that are not classes of the model."""
    kept = dict(row)
    for task in tasks:
        text = row.get(task.name)
        try:
            task.parse(text)
        except ValueError as error:
            notes.append(f"slide {row['slide_id']}, column `{task.name}`: {error}; it counts as unlabelled")
            del kept[task.name]
    return kept


def _as_test_slides(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """Make labelled slides test slides where no slide has a split, as this model was not trained on them here."""
    labelled = [row for row in rows if row.get("label")]
    if not labelled or any(row.get("split") for row in rows):
        return list(rows)
    notes.append(f"{len(labelled)} labelled slides without a split: they count as test slides")
    return [row | {"split": "test"} if row.get("label") else row for row in rows]


def _recipe_of(card: ModelCard, bundle: Path) -> dict[str, Any]:
    """Return the recipe that predicts with a model, as it is written."""
    label, *further = card.tasks
    labels = _settings_of(label)
    if further:
        labels["further"] = {task.name: _settings_of(task) for task in further}
    return {
        "name": f"predicted-{card.model_id}",
        "output": ".",
        "manifest": MANIFEST_NAME,
        **pinned_sections(card),
        "labels": labels,
        "split": {"allow": ["patient", "content", "thumbnail"]},
        "model": {
            **({} if card.encoder.features else {"encoder": card.encoder.name}),
            "memory_size": card.memory_size,
            "pooling": card.pooling,
            "position": card.position,
        },
        "predict": {"checkpoint": str(bundle.resolve()), "splits": ["train", "val", "test"]},
        "heatmap": {"splits": ["train", "val", "test"]},
    }


def _settings_of(task: Task) -> dict[str, Any]:
    plain = Task(task.name, task.classes, task.kind)
    odd = {} if task.has_background == plain.has_background else {"background": task.has_background}
    return {"classes": list(task.classes), "kind": task.kind, **odd}


def _require_own_folder(output: Path, content: Mapping[str, Any]) -> None:
    """Refuse a folder with files of another run or predictions of another model."""
    if not output.is_dir():
        return  # Run.open reports a file
    path = output / RECIPE_NAME
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in output.iterdir()):
            raise RecipeError(f"--output {output}: already contains something else; name a new folder")
        return
    text = path.read_text(encoding="utf-8")
    if not text.startswith(MARK):
        raise RecipeError(f"--output {output}: is the folder of another run; name a new one")
    try:
        known = parse_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path}: not valid YAML: {error}; name a new --output folder") from error
    known = known if isinstance(known, dict) else {}
    # The name holds the model's fingerprint, so section `predict` with its path may differ: the folder may have moved.
    other = [name for name in content if name != "predict" and known.get(name) != content[name]]
    if other:
        raise RecipeError(
            f"--output {output}: holds predictions of another model or of other settings ({', '.join(other)} differ); "
            "name a new folder"
        )


def _merged(known: Sequence[Row], asked: Sequence[Row]) -> list[Row]:
    """Return one row per slide: the known rows with the new ones merged in; new cells win."""
    rows = {row["slide_id"]: dict(row) for row in known}
    for row in asked:
        other = rows.setdefault(row["slide_id"], {})
        if other.get("path", row["path"]) != row["path"]:
            raise ManifestError(
                f"slide `{row['slide_id']}`: {other['path']} and {row['path']} have the same name; rename one, list "
                "them in a manifest with your own names, or use another --output"
            )
        other.update(row)
    return list(rows.values())


def _write(output: Path, content: Mapping[str, Any], rows: Sequence[Row], tasks: Sequence[Task]) -> None:
    first = ["slide_id", "path", *(task.name for task in tasks), "split"]
    columns = dict.fromkeys([*first, *(name for row in rows for name in row)])
    output.mkdir(parents=True, exist_ok=True)
    cells = ([row.get(name) for name in columns] for row in rows)
    atomic_write_text(output / MANIFEST_NAME, table_text(list(columns), cells))
    dumped = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    atomic_write_text(output / RECIPE_NAME, f"{MARK}\n{dumped}")
