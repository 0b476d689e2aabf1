"""Which score per tile shows cancer best: attention or single-tile probability.

    python benchmarks/maps.py [--quick] [--work DIR] [--seeds N] [--json FILE]

Per seed a model is trained on a synthetic cohort and tried on slides whose lesions are 0.1, 0.25, 0.5, 1 and 2 mm wide;
half of the slides have no tumour but benign follicles of that size. With --work everything is kept and a second call
only measures. Tables are in Markdown; intervals are 95 % by bootstrap over slides, within seed, size and label, of the
mean of the seeds. Earlier figures of additive evidence, leave-one-out and patch flipping are in RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from support.ladder import ladder_recipe, make_ladder, trained

from wsi_ips.evaluation.classification import auc_with_interval
from wsi_ips.evaluation.froc import TARGETS, Detections, Lesions, froc, match_detections, peak_detections
from wsi_ips.evaluation.localisation import TUMOUR_TILE, false_alarm_mm2, pointing_hit, tile_figures
from wsi_ips.inference.slide_scores import SlideScores, read_scores
from wsi_ips.pipeline import Run
from wsi_ips.pipeline.evaluate_run import read_lesions
from wsi_ips.results.score_raster import tile_raster
from wsi_ips.tiles.index import TileIndex

SCORES = ("single-tile probability", "attention")
FOUND = 0.8
"""Share of the tumour tiles at which false alarms are compared."""
FIGURES = {
    "auc": "tile AUC",
    "pr_auc": "tile PR-AUC",
    "pointing": "pointing game",
    "froc": "FROC",
    "alarm": "false alarm, mm²",
}
FULL = {"training_slides": 24, "slides_per_rung": 8, "start_steps": 100, "epochs": 56, "resamples": 100}
QUICK = {"training_slides": 8, "slides_per_rung": 4, "start_steps": 6, "epochs": 8, "resamples": 20}


@dataclass(frozen=True)
class Map:
    """One score on one slide.

    Attributes
    ----------
    rung, is_positive
        Lesion size and label of the slide.
    score, tumour, tissue
        Per tile: the score, and the shares of annotated tumour and of tissue, shape (N,).
    tile_mm2
        Area of a tile.
    detections, lesions
        Peaks of the map, and what is there.
    """

    rung: str
    is_positive: bool
    score: NDArray[np.float64]
    tumour: NDArray[np.float32]
    tissue: NDArray[np.float32]
    tile_mm2: float
    detections: Detections
    lesions: Lesions


def tile_score(scores: SlideScores, name: str) -> NDArray[np.float64]:
    """Score of each tile, shape (N,)."""
    if name == "attention":
        return scores.attention * len(scores.attention_logits)
    return np.asarray(scores.positive_probability, np.float64)


def peaks(index: TileIndex, score: NDArray[np.float64]) -> Detections:
    """All peaks of a map."""
    raster = tile_raster(
        index.x,
        index.y,
        score,
        bounds=index.grid,
        stride_px0=index.stride_px0,
        footprint_px0=index.plan.footprint_px0,
    )
    least = float(np.finfo(np.float32).min)
    return peak_detections(
        raster.values, origin_px0=raster.origin_px0, cell_px0=raster.cell_px0, mpp=index.mpp, least=least
    )


def maps_of_seed(run: Run, rungs: dict[str, str]) -> dict[str, list[Map]]:
    """All maps of the test slides, by name of the score."""
    found: dict[str, list[Map]] = {name: [] for name in SCORES}
    for record in (r for r in run.with_tiles() if r.split == "test"):
        index, scores = run.index(record), read_scores(run.folder.scores, record.slide_id)
        for name in SCORES:
            score = tile_score(scores, name)
            found[name].append(
                Map(
                    rung=rungs[record.slide_id],
                    is_positive=record.annotation is not None,
                    score=score,
                    tumour=np.zeros(len(index), np.float32) if index.tumour_fraction is None else index.tumour_fraction,
                    tissue=index.tissue_fraction,
                    tile_mm2=index.stride_px0.x * index.mpp.x * index.stride_px0.y * index.mpp.y / 1e6,
                    detections=peaks(index, score),
                    lesions=read_lesions(record, index.size_px0, index.bounds, index.mpp),
                )
            )
    return found


def figures(maps: Sequence[Map]) -> dict[str, float]:
    """Everything that is measured on some slides; NaN where they hold no tumour tile or no lesion that counts."""
    tumour, score = np.concatenate([m.tumour for m in maps]), np.concatenate([m.score for m in maps])
    is_tumour = tumour > TUMOUR_TILE
    found = dict.fromkeys(FIGURES, np.nan)
    if is_tumour.any():
        tiles = tile_figures(tumour, score)
        hits = [pointing_hit(m.tumour, m.score) for m in maps if (m.tumour > TUMOUR_TILE).any()]
        threshold = np.sort(score[is_tumour])[::-1][int(np.ceil(FOUND * is_tumour.sum())) - 1]
        alarms = [
            false_alarm_mm2(m.score, m.tissue, tile_mm2=m.tile_mm2, threshold=float(threshold))
            for m in maps
            if not m.is_positive
        ]
        found |= {"auc": tiles.auc, "pr_auc": tiles.pr_auc, "pointing": np.mean(hits), "alarm": np.mean(alarms)}
    if any(m.lesions.counted for m in maps):
        found["froc"] = froc([match_detections(m.detections, m.lesions) for m in maps]).score
    return {name: float(value) for name, value in found.items()}


class Ranked:
    """Tiles of a cohort in the order of their score, for figures of many draws of its slides.

    The tile figures of ``figures`` with slides counted as often as they were drawn, without sorting each time.
    """

    def __init__(self, maps: Sequence[Map]) -> None:
        self.maps = maps
        score, self.slide = (
            np.concatenate([m.score for m in maps]),
            np.repeat(np.arange(len(maps)), [len(m.score) for m in maps]),
        )
        self.order = np.argsort(-score, kind="stable")
        self.ends = np.flatnonzero(np.append(np.diff(score[self.order]) != 0, True))  # last of each run of equals
        self.is_tumour = (np.concatenate([m.tumour for m in maps]) > TUMOUR_TILE)[self.order]
        negative = np.concatenate([np.where(m.is_positive, 0, m.tissue * m.tile_mm2) for m in maps])
        self.alarm_mm2, self.slide = negative[self.order], self.slide[self.order]
        matched = [match_detections(m.detections, m.lesions) for m in maps]
        self.false, self.best = [m.false for m in matched], [m.best for m in matched]
        self.points = [pointing_hit(m.tumour, m.score) if (m.tumour > TUMOUR_TILE).any() else None for m in maps]

    def figures(self, times: NDArray[np.int64]) -> dict[str, float]:
        """Of slides that count so many times, shape (slides,)."""
        weight = times[self.slide].astype(float)
        true = np.append(0, np.cumsum(weight * self.is_tumour)[self.ends])
        false = np.append(0, np.cumsum(weight * ~self.is_tumour)[self.ends])
        found = np.full(len(true), np.nan)
        np.divide(true, true + false, out=found, where=true + false > 0)
        cut = int(np.argmax(true >= FOUND * true[-1] - 1e-9))
        drawn = np.repeat(np.arange(len(times)), times).tolist()
        hits = [self.points[i] for i in drawn if self.points[i] is not None]
        return {
            "auc": float(np.trapezoid(true, false) / true[-1] / false[-1]),
            "pr_auc": float(np.nansum(np.diff(true) * found[1:]) / true[-1]),
            "pointing": float(np.mean(hits)),
            "froc": self._froc(drawn),
            "alarm": float((weight * self.alarm_mm2)[: self.ends[cut - 1] + 1].sum())
            / sum(not self.maps[i].is_positive for i in drawn),
        }

    def _froc(self, drawn: Sequence[int]) -> float:
        """Score of :func:`froc`, by sorting once."""
        wrong, best = (np.concatenate([part[i] for i in drawn]) for part in (self.false, self.best))
        wrong = np.sort(wrong)[::-1]
        needed = [int(np.ceil(target * len(drawn))) for target in TARGETS]
        least = [wrong[n - 1] if n <= len(wrong) else np.finfo(float).min for n in needed]
        return float(np.mean([(best >= threshold).mean() for threshold in least]))


def draws(maps: Sequence[Map], rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each slide is drawn, with replacement within size and label; the same for the same generator."""
    times = np.zeros(len(maps), np.int64)
    kinds = [(m.rung, m.is_positive) for m in maps]
    for kind in sorted(set(kinds)):
        here = np.flatnonzero([k == kind for k in kinds])
        np.add.at(times, rng.choice(here, len(here)), 1)
    return times


def mean_of(tables: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of the seeds, of those that have the figure."""
    values = {name: np.array([t[name] for t in tables]) for name in FIGURES}
    return {n: float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else np.nan for n, v in values.items()}


def redrawn(seeds: Sequence[Sequence[Map]], resamples: int) -> list[dict[str, float]]:
    """Mean figures of the seeds for each draw of their slides."""
    ranked = [Ranked(maps) for maps in seeds]
    for one in ranked:  # the short way is the long way
        again = one.figures(np.ones(len(one.maps), np.int64))
        for name, value in figures(one.maps).items():
            assert np.isnan(value) or abs(again[name] - value) < 1e-6, (name, again[name], value)
    return [
        mean_of([one.figures(draws(one.maps, np.random.default_rng([number, k]))) for k, one in enumerate(ranked)])
        for number in range(resamples)
    ]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % by percentiles."""
    low, high = np.nanpercentile(values, [2.5, 97.5]) if not np.isnan(values).all() else (np.nan, np.nan)
    return float(low), float(high)


def shown(value: float, values: Sequence[float]) -> str:
    """Figure with its interval."""
    if np.isnan(value):
        return "–"
    low, high = interval(values)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def report(maps: dict[str, list[list[Map]]], resamples: int) -> list[dict[str, object]]:
    """Print the tables; rows for the file."""
    reference = SCORES[0]
    real = {name: mean_of([figures(m) for m in seeds]) for name, seeds in maps.items()}
    drawn = {name: redrawn(seeds, resamples) for name, seeds in maps.items()}
    print(
        "\nAll sizes together\n\n| score | "
        + " | ".join(FIGURES.values())
        + " |\n|---" * 1
        + "|---" * len(FIGURES)
        + "|"
    )
    for name in SCORES:
        cells = [shown(real[name][f], [d[f] for d in drawn[name]]) for f in FIGURES]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(f"\nDifference to {reference}, slides drawn in pairs\n\n| score | " + " | ".join(FIGURES.values()) + " |")
    print("|---" * (1 + len(FIGURES)) + "|")
    for name in SCORES[1:]:
        cells = [
            shown(
                real[name][f] - real[reference][f],
                [d[f] - e[f] for d, e in zip(drawn[name], drawn[reference], strict=True)],
            )
            for f in FIGURES
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    rungs = sorted({m.rung for m in maps[reference][0]})
    parts = {rung: {n: [[m for m in maps if m.rung == rung] for maps in s] for n, s in maps.items()} for rung in rungs}
    by_rung = {
        rung: {name: mean_of([figures(m) for m in seeds]) for name, seeds in part.items()}
        for rung, part in parts.items()
    }
    for figure in ("auc", "pointing"):
        print(f"\n{FIGURES[figure]} by lesion size\n\n| score | " + " | ".join(rungs) + " |")
        print("|---" * (1 + len(rungs)) + "|")
        for name in SCORES:
            print(f"| {name} | " + " | ".join(f"{by_rung[rung][name][figure]:.3f}" for rung in rungs) + " |")
    return [
        {
            "case": f"{FIGURES[f]}, {name}",
            "ours": real[name][f],
            "interval": interval([d[f] for d in drawn[name]]),
            "peer": real[reference][f],
            "peer_name": reference,
            "ratio": real[name][f] / real[reference][f] if real[reference][f] else None,
            "unit": "",
        }
        for name in SCORES
        for f in FIGURES
    ]


def slide_auc(run: Run) -> str:
    """AUC of the test slides of one run."""
    test = [r for r in run.with_tiles() if r.split == "test"]
    score = np.array([read_scores(run.folder.scores, r.slide_id).probability[-1] for r in test])
    auc = auc_with_interval(np.array([int(r.annotation is not None) for r in test]), score)
    return f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})"


class Told:
    """Stages and notes with the time."""

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator:
        """Say that a stage begins."""
        self.note(f"{title}: {total} {unit}")
        yield lambda _: None

    def note(self, text: str) -> None:
        """One line."""
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    """Make, train, predict, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few slides, hardly trained: does it run?")
    parser.add_argument("--work", type=Path, help="keep slides, models and scores here")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    slides = {key: size[key] for key in ("training_slides", "slides_per_rung")}
    epochs = {key: size[key] for key in ("start_steps", "epochs")}
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        maps: dict[str, list[list[Map]]] = {name: [] for name in SCORES}
        for seed in range(1 if options.quick else options.seeds):
            manifest = make_ladder(work / f"seed{seed}", seed, **slides)
            table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
            run = trained(ladder_recipe(manifest, seed, **epochs), Told())
            Told().note(f"seed {seed}: slide AUC of the test slides: {slide_auc(run)}")
            for name, found in maps_of_seed(run, dict(zip(table["slide_id"], table["rung"], strict=True))).items():
                maps[name].append(found)
        rows = report(maps, size["resamples"])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
