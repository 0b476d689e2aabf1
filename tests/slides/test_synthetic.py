"""Synthetic slides: real files, seeded, and no way to the label but the tissue."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely
import tiffslide
from sklearn.metrics import roc_auc_score

from wsi_ips.annotations import read_asap
from wsi_ips.geometry import Point, Size
from wsi_ips.slides import open_slide, read_thumbnail
from wsi_ips.slides.synthetic_cohort import CohortPlan, make_cohort, plan_slides
from wsi_ips.slides.synthetic_slide import write_synthetic_slide
from wsi_ips.slides.synthetic_textures import Stain
from wsi_ips.slides.synthetic_tissue import PlannedBlob, SyntheticSlide

STAIN = Stain(1.0, 1.0, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), (240, 239, 242))
SLIDE = SyntheticSlide(
    slide_id="one",
    seed=4,
    size_px0=Size(7001, 5003),
    mpp=0.5,
    tissue_mm2=1.5,
    blobs=(PlannedBlob("tumour", 0.6), PlannedBlob("follicle", 0.5)),
    stain=STAIN,
    pen=(40, 60, 150),
    blur=True,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "one.svs"
    return path, write_synthetic_slide(SLIDE, path)


def test_opens_in_both_readers_with_scale_and_pyramid(written):
    one, other = openslide.OpenSlide(written[0]), tiffslide.TiffSlide(written[0])
    assert one.level_dimensions == other.level_dimensions == ((7001, 5003), (1750, 1250), (437, 312))
    assert float(one.properties["openslide.mpp-x"]) == other.properties["tiffslide.mpp-x"] == 0.5
    assert one.properties["openslide.vendor"] == "aperio"
    assert "thumbnail" in one.associated_images
    for level in range(3):
        where = ((0, 0), level, (437, 312)) if level else ((2000, 1800), 0, (450, 320))
        a = np.asarray(one.read_region(*where).convert("RGB")).astype(int)
        b = other.read_region(*where, as_array=True).astype(int)
        assert abs(a - b).max() <= 2
    one.close()
    other.close()


def test_coarser_levels_show_the_same_slide(written):
    with open_slide(written[0]) as reader:
        x0 = Point(2048, 1536)
        fine = reader.read_region(x0, 0, Size(1024, 512)).reshape(128, 4, 256, 4, 3).mean((1, 3))
        coarse = reader.read_region(x0, 1, Size(256, 128)).astype(float)
    aligned, shifted = abs(fine - coarse).mean(), abs(fine[:, 1:] - coarse[:, :-1]).mean()
    assert aligned < 0.5 * shifted


def test_the_outline_is_where_the_tumour_is(written):
    (outline,) = written[1]
    polygon = shapely.Polygon(outline)
    area_mm2 = polygon.area * 0.25e-6
    assert area_mm2 == pytest.approx(np.pi * 0.3**2, rel=0.2)
    plain = dataclasses.replace(SLIDE, pen=None, blur=False)
    benign = dataclasses.replace(plain, blobs=(PlannedBlob("follicle", 0.6), PlannedBlob("follicle", 0.5)))
    path = written[0].parent
    write_synthetic_slide(plain, path / "a.svs")
    write_synthetic_slide(benign, path / "b.svs")
    with open_slide(path / "a.svs") as a, open_slide(path / "b.svs") as b:
        one, scale = read_thumbnail(a, 8.0)
        other, _ = read_thumbnail(b, 8.0)
    # The same slide with and without tumour differs inside the outline and nowhere else.
    differs = abs(one.astype(int) - other).max(axis=2) > 25
    y, x = np.nonzero(differs)
    points = shapely.points((x + 0.5) * scale.x / 0.5, (y + 0.5) * scale.y / 0.5)
    assert shapely.contains(polygon.buffer(48), points).mean() > 0.99
    assert differs.sum() * scale.x * scale.y > 0.1 * area_mm2 * 1e6


def test_the_same_plan_gives_the_same_bytes(written, tmp_path):
    write_synthetic_slide(SLIDE, tmp_path / "again.svs")
    assert (tmp_path / "again.svs").read_bytes() == written[0].read_bytes()


def test_a_gigapixel_is_some_megabytes(tmp_path):
    blobs = (PlannedBlob("tumour", 0.2),)
    plan = dataclasses.replace(SLIDE, size_px0=Size(45_056, 30_208), mpp=0.25, tissue_mm2=8, blobs=blobs, pen=None)
    (outline,) = write_synthetic_slide(dataclasses.replace(plan, blur=False), tmp_path / "big.svs")
    assert shapely.Polygon(outline).area * 0.0625e-6 == pytest.approx(np.pi * 0.1**2, rel=0.25)
    assert (tmp_path / "big.svs").stat().st_size < 60e6
    with open_slide(tmp_path / "big.svs") as reader:
        assert reader.info.size_px0.width * reader.info.size_px0.height > 1.3e9


COHORT = CohortPlan(
    slides=40,
    size_px0=(4096, 3072),
    mpp=0.5,
    tissue_mm2=(0.5, 1.0),
    lesion_mm=(0.25, 0.5),
    split=(0.5, 0.1, 0.4),
    pen=0.2,
    blur=0.2,
    seed=1,
)


def test_splits_hold_both_classes_and_whole_pairs():
    plans = plan_slides(COHORT)
    table = pd.DataFrame([(part, plan.label) for plan, part in plans], columns=["part", "label"])
    counts = table.groupby(["part", "label"]).size()
    for part, pairs in (("train", 10), ("val", 2), ("test", 8)):
        assert counts[part, 0] == counts[part, 1] == pairs
    train = {plan.bank for plan, part in plans if part == "train"}
    held_out = {plan.bank for plan, part in plans if part != "train"}
    assert not train & held_out


@pytest.mark.slow
def test_the_label_cannot_be_read_from_the_side(tmp_path: Path):
    manifest = make_cohort(tmp_path, COHORT, workers=2)
    table = pd.read_csv(manifest, keep_default_na=False)
    rows = []
    for row in table.itertuples():
        with open_slide(tmp_path / row.path) as reader:
            pixels, _ = read_thumbnail(reader, 16.0)
        tissue = np.ptp(pixels, axis=2) > 25
        colours = pixels[tissue].mean(0)
        rows.append(
            [(tmp_path / row.path).stat().st_size, tissue.sum(), *colours, np.ptp(pixels[tissue], axis=1).mean()]
        )
        if row.annotation:
            assert not read_asap(tmp_path / row.annotation).tumour.is_empty
    truth = table["label"] == "tumor"
    names = ("file size", "tissue area", "red", "green", "blue", "saturation")
    for name, values in zip(names, np.array(rows).T, strict=True):
        assert 0.3 < roc_auc_score(truth, values) < 0.7, name
