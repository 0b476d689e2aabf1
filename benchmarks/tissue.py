"""Tissue segmentation against planted truth: IoU, and recall and precision of the flags, on synthetic slides.

Slides are real files read back through the reader; the truth is the plan they were drawn from. No case was left out.

    python benchmarks/tissue.py [--quick] [--pictures DIR] [--json FILE]
    python benchmarks/tissue.py --overviews FOLDER [--test-only] [--pictures DIR]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}, the peer being Otsu's threshold
on saturation alone, as most pipelines use it. --pictures writes what was seen.

--overviews measures real overviews instead: a folder with ``PROVENANCE.csv`` (columns file, set, mpp_estimated) and
``truth/NAME_tissue.png`` (255 tissue, 0 glass, 128 not judged) and ``truth/NAME_pen.png`` (255 pen). It prints the IoU,
the share of the tissue under each flag where there is no pen, and the share of the pen that was missed. Constants are
chosen on every other picture by name (``choose``), the others only report (``report``); those whose set is
``test_only`` are read with --test-only alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from wsi_ips.config import TissueSection
from wsi_ips.geometry import Scale, Size
from wsi_ips.slides import Overview, open_slide, read_overview
from wsi_ips.slides.synthetic_slide import Planted, planted, write_synthetic_slide
from wsi_ips.slides.synthetic_textures import Stain
from wsi_ips.slides.synthetic_tissue import SyntheticSlide
from wsi_ips.tissue.artifacts import BITS, FLAGS, find_folds, flag_tiles
from wsi_ips.tissue.filters import dilated
from wsi_ips.tissue.mask import TissueMask
from wsi_ips.tissue.segmentation import TissueRules, segment_tissue

NO_HUE = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
PLAIN = SyntheticSlide(
    slide_id="plain",
    seed=1,
    size_px0=Size(12_288, 9_216),
    mpp=0.5,
    tissue_mm2=5.0,
    blobs=(),
    stain=Stain(1.0, 1.0, NO_HUE, (240, 239, 241)),
)
GREEN, RED, BLUE, BLACK = (20, 110, 60), (200, 20, 30), (40, 60, 150), (35, 35, 40)
CASES: dict[str, SyntheticSlide] = {
    "plain": PLAIN,
    "pale": replace(PLAIN, stain=Stain(0.3, 0.25, NO_HUE, (240, 239, 241))),
    "dark": replace(PLAIN, stain=Stain(1.8, 1.8, NO_HUE, (236, 235, 238))),
    "yellow glass": replace(PLAIN, stain=Stain(0.8, 0.7, NO_HUE, (240, 234, 214))),
    "grey glass": replace(PLAIN, stain=Stain(0.7, 0.6, NO_HUE, (205, 204, 208))),
    "fatty": replace(PLAIN, fat_share=0.4),
    "fragments": replace(PLAIN, fragments=14, tissue_mm2=2.5),
    "pale fragments": replace(PLAIN, fragments=14, tissue_mm2=2.5, stain=Stain(0.4, 0.35, NO_HUE, (240, 239, 241))),
    "green pen": replace(PLAIN, pen=GREEN),
    "red pen": replace(PLAIN, pen=RED),
    "blue pen": replace(PLAIN, pen=BLUE),
    "black pen": replace(PLAIN, pen=BLACK),
    "blurred": replace(PLAIN, blur=True),
    "folded": replace(PLAIN, fold=True),
    "bubble": replace(PLAIN, bubble=True),
    "tiny": replace(PLAIN, tissue_mm2=0.15),
}
QUICK = ("plain", "pale", "dark", "fatty", "fragments", "green pen")
TILE_UM = 128.0


@dataclass(frozen=True)
class Result:
    """One slide.

    Attributes
    ----------
    iou, otsu_iou
        Of our mask and of plain Otsu against the planted tissue.
    rung
        What found it.
    flags
        Flag, and recall and precision over tiles; only those that were planted, or raised in vain.
    """

    iou: float
    otsu_iou: float
    rung: str
    flags: dict[str, tuple[float, float]]


def measure(plan: SyntheticSlide, folder: Path, pictures: Path | None, name: str) -> Result:
    """Write the slide, read it back, compare."""
    path = folder / "slide.svs"
    write_synthetic_slide(plan, path)
    section = TissueSection()
    with open_slide(path) as reader:
        overview = read_overview(reader, section.mpp)
    mask = segment_tissue(
        overview.thumbnail, mpp=overview.mpp, px0_size=plan.size_px0, rules=TissueRules(**section.segmentation())
    )
    truth = planted(plan)
    if pictures:
        _picture(pictures / f"{name.replace(' ', '_')}.png", overview, mask, truth)
    return Result(
        iou=iou(mask.mask, truth.tissue),
        otsu_iou=iou(_otsu(overview), truth.tissue),
        rung=mask.rung,
        flags=_flags(plan, overview, mask, truth),
    )


def iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Of two masks of one area, compared on the raster of the truth."""
    found = np.asarray(Image.fromarray(mask).resize(truth.shape[::-1], Image.Resampling.NEAREST))
    return float((found & truth).sum() / max(1, (found | truth).sum()))


def _otsu(overview: Overview) -> NDArray[np.bool_]:
    saturation = np.asarray(Image.fromarray(overview.thumbnail).convert("HSV"))[..., 1]
    return np.asarray(saturation > threshold_otsu(saturation))


def _flags(
    plan: SyntheticSlide, overview: Overview, mask: TissueMask, truth: Planted
) -> dict[str, tuple[float, float]]:
    """Over tiles with tissue: planted where a third is covered (a twentieth by pen), raised where the bit is set."""
    side = TILE_UM / plan.mpp
    xs, ys = (np.arange(0, length - side, side) for length in plan.size_px0)
    boxes = np.array([(x, y, side, side) for y in ys for x in xs])
    boxes = boxes[mask.fraction(boxes) >= 0.5]
    bits, figures = flag_tiles(overview, mask, boxes), {}
    for flag in FLAGS:
        share = TissueMask(getattr(truth, flag), _scale(plan, truth), 0, "planted").fraction(boxes)
        expected, raised = share >= (0.1 if flag == "pen" else 0.4), (bits & BITS[flag]) > 0
        if expected.any() or raised.any():
            touched = share > 0
            recall = float(raised[expected].mean()) if expected.any() else float("nan")
            precision = float(touched[raised].mean()) if raised.any() else float("nan")
            figures[flag] = (recall, precision)
    return figures


def _scale(plan: SyntheticSlide, truth: Planted) -> Scale:
    height, width = truth.tissue.shape
    return Scale(plan.size_px0.width / width, plan.size_px0.height / height)


def _picture(path: Path, overview: Overview, mask: TissueMask, truth: Planted) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = overview.thumbnail.shape[1::-1]
    wanted = np.asarray(Image.fromarray(truth.tissue).resize(size, Image.Resampling.NEAREST))
    seen = overview.thumbnail.copy()
    seen[mask.mask & ~wanted] = (255, 140, 0)
    seen[wanted & ~mask.mask] = (0, 160, 255)
    if mask.seen is not None:
        seen[mask.seen.pen] = seen[mask.seen.pen] // 2 + np.array([0, 110, 110], np.uint8)
    Image.fromarray(np.concatenate([overview.thumbnail, seen], 1)).save(path)


def measure_overviews(folder: Path, *, test_only: bool, pictures: Path | None) -> None:
    """Print a table of the overviews of a folder: those to choose on, those to report on, and the test set if asked."""
    with (folder / "PROVENANCE.csv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
    open_rows = [row for row in rows if row["set"] != "test_only"]
    groups = {"choose": open_rows[0::2], "report": open_rows[1::2]}
    if test_only:
        groups["test_only"] = [row for row in rows if row["set"] == "test_only"]
    print(
        f"{'set':9s} {'overview':30s} {'IoU':>6s} {'pen':>7s} {'fold':>7s} {'bubble':>7s} {'missed':>7s}  rung, share"
    )
    for group, members in groups.items():
        found = [_overview_line(folder, row, group, pictures) for row in members]
        ious, lost, missed = (np.array([line[k] for line in found]) for k in range(3))
        print(
            f"{group:9s} {'mean IoU, worst; most lost':30s} {np.nanmean(ious):6.3f} {np.nanmin(ious):6.3f}; "
            f"{np.nanmax(lost):.1%} lost; {np.nanmean(missed):.1%} of the pen missed, {np.nanmax(missed):.1%} at worst"
        )


def _overview_line(folder: Path, row: dict[str, str], group: str, pictures: Path | None) -> tuple[float, float, float]:
    """Print the line of one overview and return its IoU, tissue lost to pen, and pen missed (NaN where unknown)."""
    path, step = folder / row["file"], float(row["mpp_estimated"])
    pixels = np.asarray(Image.open(path).convert("RGB"))
    mpp = Scale(step, step)
    found = segment_tissue(pixels, mpp=mpp, px0_size=Size(*pixels.shape[1::-1]))
    tissue, pen = (_drawn(path.parent / "truth" / f"{path.stem}_{what}.png") for what in ("tissue", "pen"))
    truth = found.mask if tissue is None else tissue >= 200
    judged = np.ones_like(truth) if tissue is None else (tissue >= 200) | (tissue < 50)
    inked = np.zeros_like(truth) if pen is None else pen >= 200
    seen = found.seen
    maps = {
        "pen": seen.pen,
        "fold": find_folds(seen.od, found.mask, seen.pen, step_um=step),
        "bubble": seen.bubble,
    }
    clear = truth & ~dilated(inked, 2)  # the edge of a hand-drawn mark is not exact
    lost = {name: float((where & clear).sum() / max(1, clear.sum())) for name, where in maps.items()}
    union = ((found.mask | truth) & judged).sum()
    iou_of = float("nan") if tissue is None else float((found.mask & truth & judged).sum() / max(1, union))
    missed = 1 - float((seen.pen & inked).sum() / inked.sum()) if inked.any() else float("nan")
    flags = " ".join(f"{share:7.2%}" for share in lost.values())
    tail = f"{missed:7.1%}  {found.rung}, {found.mask.mean():.1%}"
    print(f"{group:9s} {path.stem:30s} {iou_of:6.3f} {flags} {tail}")
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        shown = pixels.copy()
        shown[found.mask & ~truth], shown[truth & ~found.mask] = (255, 140, 0), (0, 160, 255)
        shown[found.mask ^ ndimage.binary_erosion(found.mask)] = (0, 150, 0)
        for name, colour in (("pen", (0, 255, 255)), ("fold", (160, 0, 255)), ("bubble", (255, 255, 0))):
            shown[maps[name]] = colour
        Image.fromarray(np.concatenate([pixels, shown], 1)).save(pictures / f"{path.stem}.png")
    return iou_of, lost["pen"], missed


def _drawn(path: Path) -> NDArray[np.uint8] | None:
    return np.asarray(Image.open(path).convert("L")) if path.exists() else None


def main() -> None:
    """Measure all cases with three seeds each (one with --quick), or real overviews."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases, one seed")
    parser.add_argument("--pictures", type=Path, help="folder for a picture per case")
    parser.add_argument("--json", type=Path, help="write rows to this file")
    parser.add_argument("--overviews", type=Path, help="folder of real overviews to measure instead")
    parser.add_argument("--test-only", action="store_true", help="with --overviews: also its test set")
    arguments = parser.parse_args()
    if arguments.overviews:
        measure_overviews(arguments.overviews, test_only=arguments.test_only, pictures=arguments.pictures)
        return
    rows, lowest = [], 1.0
    print(f"{'case':16s} {'seed':>4s} {'IoU':>6s} {'Otsu':>6s}  rung      flags: recall, precision")
    with tempfile.TemporaryDirectory() as folder:
        for name in QUICK if arguments.quick else CASES:
            for seed in (1,) if arguments.quick else (1, 2, 3):
                result = measure(replace(CASES[name], seed=seed), Path(folder), arguments.pictures, f"{name}_{seed}")
                flags = "  ".join(f"{flag} {recall:.2f}, {right:.2f}" for flag, (recall, right) in result.flags.items())
                print(f"{name:16s} {seed:4d} {result.iou:6.3f} {result.otsu_iou:6.3f}  {result.rung:9s} {flags}")
                lowest = min(lowest, result.iou)
                rows.append(
                    {
                        "case": f"{name}, seed {seed}",
                        "ours": round(result.iou, 4),
                        "peer": round(result.otsu_iou, 4),
                        "peer_name": "Otsu on saturation",
                        "ratio": round(result.iou / max(result.otsu_iou, 1e-9), 3),
                        "unit": "IoU",
                    }
                )
    print(f"lowest IoU {lowest:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
