"""Make manifests from folders: any folder of slides, and each layout of CAMELYON16 and CAMELYON17."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_ips.errors import ManifestError, few
from wsi_ips.manifest.folder_files import IMAGE_SUFFIXES, Discovery, all_files, slide_suffixes, slide_table
from wsi_ips.tables import read_cells

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

# Slides that the organisers withdrew; left out where the file still exists
CAMELYON16_DUPLICATES = frozenset(["test_049"])
# Slides whose outlines miss lesions; their annotations are ignored, as tissue outside may be tumour
_TUMOR = (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)
CAMELYON16_INCOMPLETE = frozenset(["test_114", *(f"tumor_{number:03d}" for number in _TUMOR)])
CAMELYON16_NAME = re.compile(r"(normal|tumor|test)_\d{3}")
CAMELYON17_NAME = re.compile(r"patient_(\d{3})_node_\d")
# CAMELYON17: patients 0 to 99 have labels; patients 0 to 19 and 100 to 119 are from centre 0, and so on
TRAINING_PATIENTS, PATIENTS_PER_CENTRE = 100, 20
NODES = ("negative", "itc", "micro", "macro")


def discover(folder: Path) -> Discovery:
    """Find the slides of a folder: as CAMELYON16 or 17 where it looks like one of them, else every slide file."""
    if is_camelyon17(folder):
        return discover_camelyon17(folder)
    return discover_camelyon16(folder) if is_camelyon16(folder) else discover_folder(folder)


def discover_slides(folder: Path) -> pd.DataFrame:
    """Return the manifest that :func:`discover` makes of a folder, and log the files left out."""
    found = discover(folder)
    if found.left_out:
        kinds = Counter(file.suffix.lower() or "no ending" for file in found.left_out)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        names = few([str(file.relative_to(folder.resolve())) for file in found.left_out])
        log.warning("folder %s: files that are in no row of the manifest: %s (%s)", folder, counts, names)
    return found.table


def discover_folder(folder: Path) -> Discovery:
    """Find every slide file of a folder and its subfolders; the slide_id is the name without its ending.

    Beside slides, PNG and JPEG files are previews or masks; in a folder without any slide they are the slides.
    """
    files = all_files(folder)
    kinds = (slide_suffixes(), IMAGE_SUFFIXES)
    found = ([file for file in files if file.suffix.lower() in suffixes] for suffixes in kinds)
    slides: list[Path] = next(filter(None, found), [])
    table = slide_table([{"slide_id": file.stem, "path": file} for file in slides], folder)
    return Discovery(table, tuple(file for file in files if file not in set(slides)))


def is_camelyon16(folder: Path) -> bool:
    """Return whether a folder looks like CAMELYON16: it has its class folders, or `images` with its file names."""
    parts = ("training/normal", "training/tumor", "testing")
    return any((folder / part).is_dir() for part in parts) or _holds(folder / "images", CAMELYON16_NAME)


def is_camelyon17(folder: Path) -> bool:
    """Return whether a folder looks like CAMELYON17: it has slides or archives named after patients."""
    name = re.compile(r"patient_\d{3}(_node_\d)?")
    return any(_holds(place, name) for place in [folder, *folder.glob("*/"), *folder.glob("*/*/")])


def discover_camelyon16(folder: Path) -> Discovery:
    """Find the slides of CAMELYON16, with its official split into training and testing.

    Slides are in ``training/normal``, ``training/tumor`` and ``testing`` (as the challenge published them), or all in
    ``images`` (on AWS), where the name tells the split. Labels of test slides come from ``reference.csv`` (None without
    it), outlines from every ``.xml`` named like a slide, except those of `CAMELYON16_INCOMPLETE`. Masks are left out.
    """
    files = all_files(folder)
    root = folder.resolve()
    outlines = _outlines(files, root)
    reference, table = _label_file(files, ("reference.csv",))
    labels = {name: cells[0] for name, cells in table.items() if cells[0] in ("normal", "tumor")}
    rows: list[dict[str, Any]] = []
    for file, label, split in _camelyon16_slides(files, root):
        name = file.stem.lower()
        outline = None if name in CAMELYON16_INCOMPLETE else outlines.get(name)
        known = labels.get(name) if label is None else label
        rows.append({"slide_id": file.stem, "path": file, "label": known, "split": split, "annotation": outline})
    unknown = [row["slide_id"] for row in rows if row["label"] is None]
    if unknown and reference:
        raise ManifestError(f"{reference}: no row `NAME,Normal` or `NAME,Tumor` for {few(unknown)}; complete the file")
    return _found(rows, files, folder, reference)


def discover_camelyon17(folder: Path) -> Discovery:
    """Find the slides of CAMELYON17: five lymph nodes of each patient, from five centres.

    Columns ``label`` (negative, itc, micro, macro) and ``stage`` (pN of the patient) come from ``stage_labels.csv`` or
    ``stages.csv``; ``center`` (0 to 4) from a folder ``center_N``, else from the patient's number. Labelled slides get
    split ``train``; hold out whole centres with ``wsi-ips split --by center``. Patients from 100 on are the challenge's
    test set, whose labels are not public: they get no split and are only predicted.
    """
    files = all_files(folder)
    slides = [file for file in files if _is_slide(file) and CAMELYON17_NAME.fullmatch(file.stem.lower())]
    patients = {file.stem.lower()[: len("patient_000")] for file in slides}
    archives = [file for file in files if re.fullmatch(r"patient_\d{3}\.zip", file.name.lower())]
    packed = [str(file) for file in archives if file.stem.lower() not in patients]
    if packed:
        raise ManifestError(f"{few(packed)}: unpack them into the same folder first, else these patients are missing")
    outlines = _outlines(files, folder.resolve())
    path, labels = _label_file(files, ("stage_labels.csv", "stages.csv"))
    if path is None:
        raise ManifestError(f"folder {folder}: no stage_labels.csv (or stages.csv) in it, which holds the labels")
    rows: list[dict[str, Any]] = []
    for file in slides:
        name = file.stem.lower()
        patient, number = name[: len("patient_000")], int(name[len("patient_") :][:3])
        rows.append(
            {
                "slide_id": file.stem,
                "path": file,
                "label": labels.get(name, ("",))[0] or None,
                "split": "train" if number < TRAINING_PATIENTS else None,
                "patient_id": patient,
                "annotation": outlines.get(name),
                "center": _centre(file, number),
                "stage": labels.get(patient, ("",))[0].replace("pn", "pN") or None,
            }
        )
    unknown = [row["slide_id"] for row in rows if row["split"] == "train" and row["label"] not in NODES]
    if unknown:
        raise ManifestError(f"{path}: no row `NAME.tif,negative|itc|micro|macro` for {few(unknown)}; complete the file")
    return _found(rows, files, folder, path)


def _camelyon16_slides(files: Sequence[Path], root: Path) -> list[tuple[Path, str | None, str]]:
    """Return each slide with its split, and with its label where the folder or the name gives it."""
    found: list[tuple[Path, str | None, str]] = []
    for part in ("normal", "tumor"):
        found += [(file, part, "train") for file in _slides_of(files, root / "training" / part)]
    found += [(file, None, "test") for file in _slides_of(files, root / "testing")]
    for file in _slides_of(files, root / "images"):
        named = CAMELYON16_NAME.fullmatch(file.stem.lower())
        if named:
            label = None if named[1] == "test" else named[1]
            found.append((file, label, "test" if label is None else "train"))
    return found


def _slides_of(files: Sequence[Path], part: Path) -> list[Path]:
    return [
        file
        for file in files
        if part in file.parents
        and _is_slide(file)
        and not any("mask" in name.lower() for name in file.relative_to(part).parts)
        and file.stem.lower() not in CAMELYON16_DUPLICATES
    ]


def _is_slide(file: Path) -> bool:
    return file.suffix.lower() in (".tif", ".tiff")


def _holds(folder: Path, name: re.Pattern[str]) -> bool:
    return folder.is_dir() and any(name.fullmatch(file.stem.lower()) for file in folder.iterdir())


def _centre(file: Path, patient: int) -> str:
    """Return the number of the centre: folders are called ``center_0`` or ``centre_0``."""
    named = [re.fullmatch(r"cent(?:er|re)_(\d)", part.name.lower()) for part in file.parents]
    return next((match[1] for match in named if match), str(patient % TRAINING_PATIENTS // PATIENTS_PER_CENTRE))


def _outlines(files: Sequence[Path], root: Path) -> dict[str, Path]:
    """Return the annotation files by lower-case slide name."""
    outlines: dict[str, Path] = {}
    for file in files:
        if file.suffix.lower() != ".xml":
            continue
        other = outlines.setdefault(file.stem.lower(), file)
        if other != file:
            raise ManifestError(f"folder {root}: two annotations of one slide, {other} and {file}; keep one")
    for archive in files:
        packed = re.fullmatch(r".*annotations.*\.zip", archive.name, re.IGNORECASE)
        if packed and not any(archive.parent in file.parents for file in outlines.values()):
            raise ManifestError(f"{archive}: unpack it into the same folder first, else no slide has its outlines")
    return outlines


def _label_file(files: Sequence[Path], names: Sequence[str]) -> tuple[Path | None, Mapping[str, tuple[str, ...]]]:
    """Read a table of labels, with or without a header: the further cells by the first, lower-case, without ending."""
    path = next((f for f in files if f.name.lower() in names), None)
    if path is None:
        return None, {}
    labels: dict[str, tuple[str, ...]] = {}
    for number, row in read_cells(path, "labels", ManifestError):
        name, *cells = (cell.lower() for cell in row)
        if cells and labels.setdefault(re.sub(r"\.(tif|zip)$", "", name), tuple(cells)) != tuple(cells):
            raise ManifestError(f"labels {path}, row {number}: `{name}` has another label in a row above; keep one")
    return path, labels


def _found(rows: Sequence[dict[str, Any]], files: Sequence[Path], folder: Path, labels: Path | None) -> Discovery:
    table = slide_table(rows, folder)
    used = {*table["path"], *table["annotation"], labels}
    return Discovery(table, tuple(file for file in files if file not in used))
