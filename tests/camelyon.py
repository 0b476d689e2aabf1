"""A folder of the form of CAMELYON16, with slide files and ASAP annotations of small synthetic slides."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from wsi_ips.pipeline.demo_slides import DEMO, make_slides

SMALL_SLIDES = {"size_px0": (6144, 4096), "tissue_mm2": (0.8, 1.2), "lesion_mm": (0.4, 0.6), "pen": 0.0, "blur": 0.0}


def camelyon16_folder(folder: Path, work: Path, *, training: int = 3, testing: int = 2, seed: int = 3) -> Path:
    """``training`` and ``testing`` slides of each class under the names and in the places of the challenge.

    With what lies in the real one too and is no slide to learn from: a mask, the withdrawn copy ``test_049``, a text;
    ``tumor_010`` is among the slides, whose outlines are not complete.
    """
    normal, tumour = _slides(work, 2 * (training + testing), seed)
    reference = []
    for number, (path, _) in enumerate(normal[:training], 1):
        _put(path, folder / "training" / "normal" / f"normal_{number:03d}.tif")
    for number, (path, outline) in zip([*range(1, training), 10], tumour[:training], strict=True):
        _put(path, folder / "training" / "tumor" / f"tumor_{number:03d}.tif")
        _put(outline, folder / "training" / "lesion_annotations" / f"tumor_{number:03d}.xml")
    for number, (path, outline) in enumerate([*normal[training:], *tumour[training:]], 1):
        _put(path, folder / "testing" / "images" / f"test_{number:03d}.tif")
        is_tumour = number > testing
        if is_tumour:
            _put(outline, folder / "testing" / "lesion_annotations" / f"test_{number:03d}.xml")
        reference.append(f"test_{number:03d},{'Tumor,IDC,Macro' if is_tumour else 'Normal,None,None'}")
    _put(normal[-1][0], folder / "testing" / "images" / "test_049.tif")
    _put(normal[0][0], folder / "training" / "tumor_mask" / "tumor_001_mask.tif")
    (folder / "testing" / "reference.csv").write_text("\n".join(reference) + "\n", encoding="utf-8")
    (folder / "README.md").write_text("CAMELYON16\n", encoding="utf-8")
    return folder


def _slides(work: Path, count: int, seed: int) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """Normal and tumour slides with their outlines."""
    manifest = make_slides(work, replace(DEMO, slides=count, **SMALL_SLIDES), seed)
    table = pd.read_csv(manifest)
    rows = [
        [
            (manifest.parent / row["path"], manifest.parent / str(row["annotation"]))
            for _, row in table[table["label"] == label].iterrows()
        ]
        for label in ("normal", "tumor")
    ]
    return rows[0], rows[1]


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
