"""How a slide is decided, on donors that were not learned from: heads of several kinds on frozen features, a trial.

Cohorts come from ``../shared/tools/real_texture_cohort.py`` (not part of the product), one folder each. The tiles of
every slide are embedded once as they are and, for training, in augmented views; each kind of head is trained on all
slides that are not test slides. Nothing here is end to end, and no threshold is fitted.

    python -m benchmarks.learning.decisions WORK COHORT ... --weights FILE [--kinds NAME ...] [--views 1 2 4]
        [--seeds 0 1] [--recipe FILE] [--imagenet]

Prints a row per kind and number of views, means over cohorts and seeds: slide AUC, and by cohort; slide AUC of the mean
log-odds of the 8 highest tiles; tile PR-AUC. ``--weights``: ImageNet weights (benchmarks/support/imagenet.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, roc_auc_score
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional

from wsi_ips.config import AugmentSection, load_recipe
from wsi_ips.evaluation.localisation import TUMOUR_TILE
from wsi_ips.patch_dataset import PatchDataset
from wsi_ips.pipeline import run_stage
from wsi_ips.training.augment import augment, tile_keys

RECIPE = Path(__file__).with_name("real_textures.yaml")
ENCODER, WIDTH = "tf_efficientnet_lite0", 1280
STEPS, SLIDES, RATE, DECAY, WARMUP = 400, 4, 3e-4, 0.1, 20
HIGHEST = 8


@dataclass(frozen=True)
class Slide:
    """Features of a slide's tiles."""

    positive: bool
    split: str
    views: Tensor  # (V, N, D); the first is of the tiles as they are
    is_tumour: NDArray[np.bool_]  # (N,)


def highest(odds: Tensor, count: int) -> Tensor:
    """Return the mean of the highest log-odds, (N,)."""
    return odds.topk(min(count, len(odds))).values.mean()


# Log-odds of a slide from those of its tiles, (N,), and their attention, (N,), which sums to 1
KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention": lambda odds, attention: (attention * odds).sum(),
    "highest 4": lambda odds, _: highest(odds, 4),
    "highest 8": lambda odds, _: highest(odds, 8),
    "half and half": lambda odds, attention: ((attention * odds).sum() + highest(odds, 8)) / 2,
    "log-sum-exp": lambda odds, _: (torch.logsumexp(4 * odds, 0) - np.log(len(odds))) / 4,
}


class Head(nn.Module):
    """Gated attention and a linear head on features."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.content, self.gate, self.scorer = nn.Linear(WIDTH, 128), nn.Linear(WIDTH, 128), nn.Linear(128, 1)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the log-odds of the slide and of its tiles, (N,), and their attention, (N,)."""
        logits = self.head(features)
        odds = logits[:, 1] - logits[:, 0]
        gated = torch.tanh(self.content(features)) * torch.sigmoid(self.gate(features))
        attention = torch.softmax(self.scorer(gated)[:, 0], 0)
        return KINDS[self.kind](odds, attention), odds, attention


def embed(cohort: Path, views: int, options: argparse.Namespace) -> list[Slide]:
    """Return the slides of a cohort with their features; test slides are seen in one view."""
    changes = {"manifest": str(cohort / "manifest.csv"), "output": str(options.work / f"tiles_{cohort.name}")}
    run = run_stage(load_recipe(options.recipe, changes), "tile")
    network = timm.create_model(ENCODER, num_classes=0).eval()
    network.load_state_dict(load_file(options.weights), strict=False)
    own = (network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
    both = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if options.imagenet else own
    mean, deviation = (torch.tensor(values)[None, :, None, None] for values in both)
    found, strengths = [], AugmentSection()
    for record in run.slides.records:
        tiles = run.slides.tiles(record)
        dataset = PatchDataset([tiles])
        patches = torch.stack([dataset[n][0] for n in range(len(dataset))])
        dataset.close()
        seen = [patches]
        for view in range(1, views if record.split != "test" else 1):
            keys = tile_keys(seed=0, epoch=view, slide_id=record.slide_id, tiles=np.arange(len(patches)))
            seen.append(augment(patches, keys, strengths))
        with torch.inference_mode():
            features = [torch.cat([network((part - mean) / deviation) for part in view.split(128)]) for view in seen]
        share = tiles.index.tumour_fraction
        is_tumour = np.zeros(len(patches), bool) if share is None else share > TUMOUR_TILE
        positive = run.recipe.labels.tasks[0].is_positive(run.slides.target(record))
        found.append(Slide(positive, record.split or "", torch.stack(features).clone(), is_tumour))
    run.slides.pool.close()
    return found


def trained(slides: Sequence[Slide], kind: str, views: int, seed: int) -> Head:
    """Train a head on all slides that are not test slides."""
    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), Head(kind)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    order: list[int] = []
    for step in range(STEPS):
        losses = []
        for _ in range(SLIDES):
            order = order or list(rng.permutation(len(slides)))
            slide = slides[order.pop()]
            truth = torch.tensor(float(slide.positive))
            whole, odds, attention = net(slide.views[rng.integers(views)])
            # All tiles of a negative slide are negative; of a positive one, those with attention are taught
            weight = attention.detach() if slide.positive else torch.full_like(odds, 1 / len(odds))
            if slide.positive and kind not in ("attention", "half and half"):
                weight = torch.zeros_like(odds)
            each = functional.binary_cross_entropy_with_logits(odds, truth.expand_as(odds), reduction="none")
            losses.append(functional.binary_cross_entropy_with_logits(whole, truth) + (weight * each).sum())
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return net


def figures(net: Head, slides: Sequence[Slide]) -> tuple[float, float, float]:
    """Return slide AUC, that of the highest tiles, and tile PR-AUC."""
    with torch.inference_mode():
        found = [net(slide.views[0]) for slide in slides]
    truth = [slide.positive for slide in slides]
    odds, is_tumour = torch.cat([odds for _, odds, _ in found]).numpy(), np.concatenate([s.is_tumour for s in slides])
    return (
        float(roc_auc_score(truth, [float(whole) for whole, *_ in found])),
        float(roc_auc_score(truth, [float(highest(odds, HIGHEST)) for _, odds, _ in found])),
        float(average_precision_score(is_tumour, odds)),
    )


def main() -> None:
    """Embed the cohorts, train the heads, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("cohorts", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="labels and tiles; needle.yaml for small lesions")
    parser.add_argument(
        "--imagenet", action="store_true", help="normalise tiles as ImageNet is, not as the weights say"
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="NAME")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    cohorts = [embed(cohort, max(options.views), options) for cohort in options.cohorts]
    print("| slide logit | views | slide AUC | by cohort | its top 8 tiles | tile PR-AUC |\n|---|---|---|---|---|---|")
    for kind, views in product(options.kinds, options.views):
        rows = np.array(
            [
                [
                    figures(
                        trained([s for s in slides if s.split != "test"], kind, views, seed),
                        [s for s in slides if s.split == "test"],
                    )
                    for seed in options.seeds
                ]
                for slides in cohorts
            ]
        )  # (cohorts, seeds, 3)
        auc, top, tiles = rows.mean((0, 1))
        by_cohort = ", ".join(f"{value:.2f}" for value in rows[..., 0].mean(1))
        print(f"| {kind} | {views} | {auc:.3f} | {by_cohort} | {top:.3f} | {tiles:.3f} |", flush=True)


if __name__ == "__main__":
    main()
