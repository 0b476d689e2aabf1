"""Segmentation and flags against planted truth, on slides that are written and read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi_ips.config import TissueSection
from wsi_ips.geometry import Scale, Size
from wsi_ips.slides import open_slide, read_overview
from wsi_ips.slides.synthetic_slide import planted, write_synthetic_slide
from wsi_ips.slides.synthetic_textures import Stain
from wsi_ips.slides.synthetic_tissue import SyntheticSlide
from wsi_ips.tissue.artifacts import BITS, flag_tiles
from wsi_ips.tissue.mask import TissueMask
from wsi_ips.tissue.segmentation import TissueRules, segment_tissue

HUE = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
PLAIN = SyntheticSlide("plain", 3, Size(7168, 5120), 0.5, 1.5, (), Stain(1.0, 1.0, HUE, (240, 239, 241)))
SECTION = TissueSection()


def seen(plan: SyntheticSlide, folder: Path):
    write_synthetic_slide(plan, folder / "slide.svs")
    with open_slide(folder / "slide.svs") as reader:
        overview = read_overview(reader, SECTION.mpp)
    mask = segment_tissue(
        overview.thumbnail, mpp=overview.mpp, px0_size=plan.size_px0, rules=TissueRules(**SECTION.segmentation())
    )
    return overview, mask


@pytest.mark.parametrize(
    "change",
    [
        {"stain": Stain(0.3, 0.25, HUE, (240, 239, 241))},
        {"stain": Stain(1.8, 1.8, HUE, (236, 235, 238))},
        {"stain": Stain(0.8, 0.7, HUE, (240, 234, 214))},
        {"pen": (20, 110, 60)},
        {"fat_share": 0.4},
        {"fragments": 5},
    ],
    ids=["pale", "dark", "yellow glass", "pen", "fatty", "fragments"],
)
def test_found_and_planted_tissue_overlap(tmp_path, change):
    plan = replace(PLAIN, **change)
    _, mask = seen(plan, tmp_path)
    truth = planted(plan).tissue
    found = np.asarray(Image.fromarray(mask.mask).resize(truth.shape[::-1], Image.Resampling.NEAREST))
    assert (found & truth).sum() / (found | truth).sum() >= 0.95


@pytest.mark.parametrize(
    ("flag", "change", "share"),
    [("pen", {"pen": (40, 60, 150)}, 0.1), ("fold", {"fold": True}, 0.4), ("bubble", {"bubble": True}, 0.4)],
)
def test_tiles_with_an_artefact_are_flagged_and_others_are_not(tmp_path, flag, change, share):
    plan = replace(PLAIN, **change)
    overview, mask = seen(plan, tmp_path)
    truth = planted(plan)
    raster = getattr(truth, flag)
    scale = Scale(plan.size_px0.width / raster.shape[1], plan.size_px0.height / raster.shape[0])
    xs, ys = (np.arange(0, side - 256, 256) for side in plan.size_px0)
    boxes = np.array([(x, y, 256, 256) for y in ys for x in xs])
    boxes = boxes[mask.fraction(boxes) >= 0.5]
    covered = TissueMask(raster, scale, 0.0, "planted").fraction(boxes)
    raised = (flag_tiles(overview, mask, boxes) & BITS[flag]) > 0
    assert (covered >= share).any()
    assert raised[covered >= share].mean() >= 0.9
    assert not raised[covered == 0].any()


def test_a_plan_without_variants_is_drawn_as_before(tmp_path):
    """What variants draw is drawn last, so that slides of earlier cohorts stay the same files."""
    write_synthetic_slide(PLAIN, tmp_path / "a.svs")
    truth = planted(PLAIN)
    assert truth.tissue.any()
    assert not any(raster.any() for raster in (truth.pen, truth.fold, truth.bubble, truth.blur))


def test_detail_that_is_smeared_is_flagged_as_blur():
    rng = np.random.default_rng(0)
    from wsi_ips.slides import Overview

    def overview(sigma: float) -> Overview:
        from scipy import ndimage

        noise = ndimage.gaussian_filter(rng.normal(size=(512, 640)), sigma)
        grey = np.clip(150 + 40 * noise / noise.std(), 0, 255).astype(np.uint8)
        fine = np.stack([grey, grey // 2, grey], axis=-1)
        return Overview(np.asarray(Image.fromarray(fine).reduce(2)), fine, Scale(8.0, 8.0), 2)

    mask = TissueMask(np.ones((256, 320), bool), Scale(16, 16), 0.0, "drawn")
    boxes = np.array([[0, 0, 512, 512], [1024, 512, 512, 512]])
    assert (flag_tiles(overview(3.0), mask, boxes) == BITS["blur"]).all()
    assert (flag_tiles(overview(0.5), mask, boxes) == 0).all()
