"""What is learned from slide labels alone: the method against simpler ones, on a cohort of slides.

Each variant is the same recipe with a few keys changed, trained and tested as `wsi-ips train` and `predict` do it, a
process each. Tiles are made once and shared, and so are the features of variants that learn from those. `{seed}` in
MANIFEST stands for the seed: each then has a cohort of its own.

    python -m benchmarks.learning.compare RECIPE MANIFEST WORK [--seeds 0 1 2] [--variants NAME ...]
        [--weights FILE] [--by COLUMN] [--jobs N] [--json FILE]

Finished runs stand in WORK and are not done again. Prints a table, mean over seeds, least and most in brackets, of the
test slides: slide AUC; sensitivity and specificity at the model's own threshold; slide AUC of the mean of the 16
highest single-tile probabilities; tile AUC and PR-AUC of the single-tile probability; FROC score as in CAMELYON16;
selection recall (of the tumour tiles, or of M where there are more, the share that is kept; mean over tumour slides);
share of tumour slides whose highest tile is tumour; CPU minutes of the training (a features' encoder once, in whichever
training came first).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.learning.runs import VARIANTS, common_options, header, line, print_table, run_all, training


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("manifest")
    parser.add_argument("work", type=Path)
    parser.add_argument("--by", default="", help="column of the manifest whose values get tables of their own")
    common_options(parser, list(VARIANTS))
    options = parser.parse_args()
    pairs = [(variant, seed) for variant in options.variants for seed in options.seeds]
    trainings = [
        training(
            options.recipe,
            Path(options.manifest.format(seed=seed)),
            options.work,
            variant,
            seed,
            own="{seed}" in options.manifest,
            by=options.by,
            weights=options.weights,
        )
        for variant, seed in pairs
    ]
    found = dict(zip(pairs, run_all(trainings, jobs=options.jobs), strict=True))
    by_variant = {name: [found[name, seed] for seed in options.seeds] for name in options.variants}
    print_table(by_variant)
    groups = sorted({group for entry in found.values() if entry for group in entry.get("by", {})})
    for group in groups:
        print(f"\n{options.by} {group}\n\n{header('training')}")
        for name, entries in by_variant.items():
            print(line(name, [entry and entry["by"][group] for entry in entries]))
    if options.json:
        options.json.write_text(json.dumps(by_variant, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
