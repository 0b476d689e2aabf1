"""Which score per tile shows cancer best: attention, single-tile probability, leave-one-out or additive evidence.

    python benchmarks/maps.py [--quick] [--work DIR] [--seeds N] [--json FILE]

Per seed two models are trained on one synthetic cohort, with and without `model.evidence`, and tried on slides whose
lesions are 0.1, 0.25, 0.5, 1 and 2 mm wide, half of them without tumour but with benign follicles of that size. With
--work everything is kept and a second call only measures.

Tables in Markdown; intervals are 95 % by bootstrap over slides, within seed, size and label, the mean of the seeds
taken each time. A tile that is not kept has a leave-one-out of 0, for without it the decision is the same; on maps and
among detections it is missing.
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
import torch
from numpy.typing import NDArray
from support.ladder import ladder_recipe, make_ladder, trained

from wsi_ips.evaluation import (
    Detections,
    Lesions,
    auc_with_interval,
    false_alarm_mm2,
    froc,
    match_detections,
    patch_flipping,
    peak_detections,
    pointing_hit,
    tile_figures,
)
from wsi_ips.evaluation.froc import TARGETS
from wsi_ips.evaluation.localisation import TUMOUR_TILE
from wsi_ips.inference import SlideScores, read_scores
from wsi_ips.manifest import SlideRecord
from wsi_ips.model import IpsNet, load_checkpoint
from wsi_ips.pipeline import Run
from wsi_ips.pipeline.evaluate_run import lesions_of
from wsi_ips.results import tile_raster
from wsi_ips.scanning import plain_patches, scan_slides
from wsi_ips.tiles import TileIndex

SCORES = {
    "single-tile probability": ("plain", "probability"),
    "attention": ("plain", "attention"),
    "leave-one-out": ("plain", "left out"),
    "additive evidence": ("evidence", "evidence"),
    "probability, evidence model": ("evidence", "probability"),
    "attention, evidence model": ("evidence", "attention"),
    "leave-one-out, evidence model": ("evidence", "left out"),
    "attention x log-odds, plain model": ("plain", "evidence"),
}
"""Name to the model and what of it."""
FOUND = 0.8
"""Share of the tumour tiles at which false alarms are compared."""
FLIPPED = 2
"""Slides with tumour of each size, seed and model whose tiles are taken away: all their tiles are embedded for it."""
FIGURES = {
    "auc": "tile AUC",
    "pr_auc": "tile PR-AUC",
    "pointing": "pointing game",
    "froc": "FROC",
    "alarm": "false alarm, mm²",
    "gain": "flipping gain",
}
FULL = {"training_slides": 24, "slides_per_rung": 8, "warm_start_epochs": 50, "epochs": 56, "resamples": 100}
QUICK = {"training_slides": 8, "slides_per_rung": 4, "warm_start_epochs": 6, "epochs": 8, "resamples": 20}


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
    gain
        Of patch flipping; None on slides without tumour and where it was not tried.
    """

    rung: str
    is_positive: bool
    score: NDArray[np.float64]
    tumour: NDArray[np.float32]
    tissue: NDArray[np.float32]
    tile_mm2: float
    detections: Detections
    lesions: Lesions
    gain: float | None


def tile_score(scores: SlideScores, what: str) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Score of each tile, shape (N,), and the tiles that have one."""
    every = np.arange(len(scores.attention_logits))
    if what == "left out":
        score = np.zeros(len(every))
        score[scores.kept] = scores.left_out
        return score, np.sort(scores.kept).astype(np.intp)
    if what == "attention":
        return scores.attention * len(every), every
    return np.asarray(scores.evidence if what == "evidence" else scores.positive_probability, np.float64), every


def peaks(index: TileIndex, score: NDArray[np.float64], tiles: NDArray[np.intp]) -> Detections:
    """All peaks of a map."""
    raster = tile_raster(
        index.x[tiles],
        index.y[tiles],
        score[tiles],
        bounds=index.grid,
        stride_px0=index.stride_px0,
        footprint_px0=index.plan.footprint_px0,
    )
    least = float(np.finfo(np.float32).min)
    return peak_detections(
        raster.values, origin_px0=raster.origin_px0, cell_px0=raster.cell_px0, mpp=index.mpp, least=least
    )


class Decision:
    """The slide's probability from some of its tiles: selection, pooling and classes anew; tiles are embedded once."""

    def __init__(self, run: Run, record: SlideRecord, net: IpsNet, memory_size: int) -> None:
        self.net, self.memory_size = net, memory_size
        kept = run.folder.root / "embeddings" / f"{record.slide_id}.npy"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            np.save(kept, self._embedded(run, record))
        self.embeddings = torch.from_numpy(np.load(kept))  # (N, D)
        with torch.inference_mode():
            self.logits = net.pooling.logits(self.embeddings).numpy()

    def _embedded(self, run: Run, record: SlideRecord) -> NDArray[np.float32]:
        parts = []

        def embed(patches: torch.Tensor) -> torch.Tensor:
            parts.append(self.net.encoder(patches))
            return parts[-1]

        tiles = run.tiles(record)
        prepare = plain_patches(torch.device("cpu"))
        compute = run.recipe.compute.model_copy(update={"readers": 1})  # one stream: chunks in order of id
        scan_slides(self.net, [tiles], memory_size=1, compute=compute, prepare=prepare, encode=embed)
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def __call__(self, tiles: NDArray[np.intp]) -> float:
        """Probability of the positive class."""
        best = tiles[self.net.rule(self.logits[tiles], self.memory_size)]
        logits = self.net(self.embeddings[best][None], torch.ones(1, len(best), dtype=torch.bool))
        return float(self.net.probabilities(logits)[0, -1])


def maps_of_seed(runs: dict[str, Run], rungs: dict[str, str]) -> dict[str, list[Map]]:
    """All maps of the test slides, by name of the score."""
    found: dict[str, list[Map]] = {name: [] for name in SCORES}
    for model, run in runs.items():
        net, card = load_checkpoint(run.folder.model)
        flipped: dict[str, int] = {}
        for record in (r for r in run.with_tiles() if r.split == "test"):
            index, scores = run.index(record), read_scores(run.folder.scores, record.slide_id)
            lesions = lesions_of(run, record)
            tumour = index.tumour_fraction if index.tumour_fraction is not None else np.zeros(len(index), np.float32)
            is_positive = record.annotation is not None
            rung = rungs[record.slide_id]
            flipped[rung] = flipped.get(rung, 0) + is_positive
            asked = is_positive and flipped[rung] <= FLIPPED
            decide = Decision(run, record, net, card.memory_size) if asked else None
            if decide:  # embeddings are in the order of the scores
                np.testing.assert_allclose(decide.logits, scores.attention_logits, rtol=1e-3, atol=1e-3)
            for name, what in ((n, w) for n, (m, w) in SCORES.items() if m == model):
                score, tiles = tile_score(scores, what)
                rng = np.random.default_rng(0)
                found[name].append(
                    Map(
                        rung=rung,
                        is_positive=is_positive,
                        score=score,
                        tumour=tumour,
                        tissue=index.tissue_fraction,
                        tile_mm2=index.stride_px0.x * index.mpp.x * index.stride_px0.y * index.mpp.y / 1e6,
                        detections=peaks(index, score, tiles),
                        lesions=lesions,
                        gain=patch_flipping(score, decide, rng=rng).gain if decide else None,
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
    gains = [m.gain for m in maps if m.gain is not None]
    found["gain"] = np.mean(gains) if gains else np.nan
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
        gains = [gain for i in drawn if (gain := self.maps[i].gain) is not None]
        return {
            "auc": float(np.trapezoid(true, false) / true[-1] / false[-1]),
            "pr_auc": float(np.nansum(np.diff(true) * found[1:]) / true[-1]),
            "pointing": float(np.mean(hits)),
            "froc": self._froc(drawn),
            "alarm": float((weight * self.alarm_mm2)[: self.ends[cut - 1] + 1].sum())
            / sum(not self.maps[i].is_positive for i in drawn),
            "gain": float(np.mean(gains)) if gains else np.nan,
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
    reference = next(iter(SCORES))
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
    for name in list(SCORES)[1:]:
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
    for figure in ("auc", "pointing", "gain"):
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
    epochs = {key: size[key] for key in ("warm_start_epochs", "epochs")}
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        maps: dict[str, list[list[Map]]] = {name: [] for name in SCORES}
        for seed in range(1 if options.quick else options.seeds):
            manifest = make_ladder(work / f"seed{seed}", seed, **slides)
            table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
            runs = {
                name: trained(ladder_recipe(manifest, seed, evidence=name == "evidence", **epochs), Told())
                for name in ("plain", "evidence")
            }
            aucs = ", ".join(f"{name} {slide_auc(run)}" for name, run in runs.items())
            Told().note(f"seed {seed}: slide AUC of the test slides: {aucs}")
            for name, found in maps_of_seed(runs, dict(zip(table["slide_id"], table["rung"], strict=True))).items():
                maps[name].append(found)
        rows = report(maps, size["resamples"])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
