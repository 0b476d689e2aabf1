"""Small lesions: default training on synthetic slides where a lesion is one tile in a hundred or fewer.

48 slides of 40 960 x 28 672 px with 28 to 36 mm² of tissue, about 1 900 tiles of 128 µm; lesions of 0.4 to 0.8 mm
(1.3 % of the tiles of a slide at most), or 0.2 to 0.4 mm with ``--small``. Each seed has slides of its own.

    python -m benchmarks.learning.needle WORK --weights FILE [--small] [--outlined] [--seeds 0 1 2]
        [--variants NAME ...] [--jobs N]

``--weights``: ImageNet weights of EfficientNet-Lite0 (benchmarks/support/imagenet.py). ``--outlined``: a quarter of the
training tumour slides have outlines, which teach; without it, labels of slides alone. Prints the table of
``compare.py``; finished runs stand in WORK and are not done again.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd

from benchmarks.learning.runs import common_options, print_table, run_all, training
from wsi_ips.pipeline.demo_slides import DEMO, make_slides

RECIPE = Path(__file__).with_name("needle.yaml")
SLIDES = replace(DEMO, slides=48, size_px0=(40_960, 28_672), tissue_mm2=(28.0, 36.0), split=(0.5, 0.25, 0.25))
LESIONS_MM, SMALL_MM = (0.4, 0.8), (0.2, 0.4)


def main() -> None:
    """Make the slides, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--small", action="store_true", help="lesions of 0.2 to 0.4 mm")
    parser.add_argument("--outlined", action="store_true", help="a quarter of the training tumour slides has outlines")
    common_options(parser, ["IPS from ImageNet"])
    options = parser.parse_args()
    if options.outlined and options.variants == ["IPS from ImageNet"]:
        options.variants = ["IPS from ImageNet, outlines"]
    work = options.work / ("small" if options.small else "needle")
    plan = replace(SLIDES, lesion_mm=SMALL_MM if options.small else LESIONS_MM)
    manifests = {seed: make_slides(work / f"cohort_{seed}", plan, seed) for seed in options.seeds}
    if options.outlined:
        manifests = {seed: few_outlines(manifest) for seed, manifest in manifests.items()}
        work = work / "outlined"
    pairs = [(variant, seed) for variant in options.variants for seed in options.seeds]
    trainings = [
        training(RECIPE, manifests[seed], work, variant, seed, own=True, weights=options.weights)
        for variant, seed in pairs
    ]
    found = dict(zip(pairs, run_all(trainings, jobs=options.jobs), strict=True))
    by_variant = {name: [found[name, seed] for seed in options.seeds] for name in options.variants}
    print_table(by_variant)
    if options.json:
        options.json.write_text(json.dumps(by_variant, indent=1) + "\n", encoding="utf-8")


def few_outlines(manifest: Path) -> Path:
    """Write a manifest in which a quarter of the training tumour slides keep their outlines, and test slides do."""
    rows = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    tumour = rows.index[(rows["split"] == "train") & (rows["annotation"] != "")]
    kept = tumour[: math.ceil(len(tumour) / 4)]
    rows.loc[(rows["split"] != "test") & ~rows.index.isin(kept), "annotation"] = ""
    path = manifest.with_name("few_outlines.csv")
    rows.to_csv(path, index=False)
    return path


if __name__ == "__main__":
    main()
