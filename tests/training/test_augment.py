"""Augmentation depends on seed, epoch, slide and tile, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed
from torchvision.transforms.v2 import functional

from wsi_ips.config import AugmentSection
from wsi_ips.training.augment import augment, colour_map, stain_map, tile_keys

NOTHING = AugmentSection.nothing()
EVERYTHING = AugmentSection(hed=0.3, brightness=0.3, saturation=0.4)


def keys(**changes):
    arguments = {"seed": 1, "epoch": 2, "slide_id": "a", "tiles": np.arange(400)} | changes
    return tile_keys(**arguments)


def with_only(**strengths) -> AugmentSection:
    return NOTHING.model_copy(update=strengths)


@pytest.mark.parametrize("strengths", [AugmentSection(), EVERYTHING], ids=["default", "everything"])
def test_a_patch_is_changed_alike_in_any_chunk(strengths):
    patches = torch.rand(20, 3, 8, 8)
    some = keys(tiles=np.arange(20))
    whole = augment(patches, some, strengths)
    picked = np.array([17, 3, 11])
    torch.testing.assert_close(augment(patches[picked], some[picked], strengths), whole[picked], rtol=0, atol=0)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_memory_stays_channels_last_and_the_input_as_it_is():
    patches = torch.rand(3, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    before = patches.clone()
    assert augment(patches, keys()[:3], EVERYTHING).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(patches, before, rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}, {"slide_id": "b"}])
def test_each_ingredient_matters(change):
    assert not np.isin(keys(**change), keys()).any()


def test_all_eight_positions_occur_about_equally():
    counts = np.bincount((keys() & np.uint64(7)).astype(int), minlength=8)
    assert counts.min() > 25
    assert counts.max() < 80


def test_geometry_is_a_turn_or_mirror():
    patch = torch.linspace(0.1, 0.9, 3 * 4 * 4).view(1, 3, 4, 4)
    for key in keys()[:30]:
        out = augment(patch, np.array([key]), with_only(turns=True))[0]
        positions = [torch.rot90(p, k, (1, 2)) for k in range(4) for p in (patch[0], patch[0].flip(2))]
        assert any(torch.allclose(out, p) for p in positions)


def test_hed_jitter_is_that_of_scikit_images_stains():
    """Unmixed by scikit-image, each stain multiplied and shifted, mixed again; scikit-image scales densities."""
    rng, count, unit = np.random.default_rng(0), 6, -np.log(1e-6)
    concentrations = rng.uniform(0.3, 0.6, (count, 8, 8, 3)) / unit  # all positive: scikit-image cuts at 0
    image = hed2rgb(concentrations)
    strengths, some = with_only(hed=0.1), keys()[:count]
    spread = stain_map(some, strengths)
    found = augment(torch.from_numpy(image).permute(0, 3, 1, 2), some, strengths).permute(0, 2, 3, 1).numpy()
    stains, changed = rgb2hed(image), rgb2hed(found)
    for tile in range(count):
        for stain in range(3):
            slope, shift = np.polyfit(stains[tile, :, :, stain].ravel(), changed[tile, :, :, stain].ravel(), 1)
            assert 0.9 <= slope <= 1.1
            assert abs(shift * unit) <= 0.1
            np.testing.assert_allclose(stains[tile, :, :, stain] * slope + shift, changed[tile, :, :, stain], atol=1e-6)
    assert np.ptp(spread[0].trace(axis1=1, axis2=2)) > 0.01  # tiles differ


def test_brightness_and_saturation_are_those_of_torchvision():
    patches = torch.rand(5, 3, 8, 8) * 0.4 + 0.3
    some = keys()[:5]
    for name in ("brightness", "saturation"):
        strengths = with_only(**{name: 0.3})
        first = colour_map(some, strengths)[:, 0, 0]
        factor = {"brightness": first, "saturation": (first - 0.299) / (1 - 0.299)}[name]
        adjust = getattr(functional, f"adjust_{name}")
        expected = torch.stack([adjust(p, f) for p, f in zip(patches, factor, strict=True)])
        torch.testing.assert_close(augment(patches, some, strengths), expected, rtol=1e-3, atol=1e-3)
        assert np.ptp(factor) > 0.1


def test_saturation_never_changes_grey():
    grey = torch.rand(4, 1, 5, 5).expand(-1, 3, -1, -1)
    torch.testing.assert_close(augment(grey, keys()[:4], with_only(saturation=0.5)), grey)


def test_numbers_are_spread_over_their_whole_range_and_not_tied_to_each_other():
    strengths = with_only(hed=0.2)
    matrix, shift = stain_map(keys(tiles=np.arange(4000)), strengths)
    stains = shift @ np.linalg.inv([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # (n, 3)
    assert np.allclose(stains.min(0), -0.2, atol=2e-3)
    assert np.allclose(stains.max(0), 0.2, atol=2e-3)
    together = np.corrcoef(np.c_[stains, matrix[:, 0, 0], keys(tiles=np.arange(4000)) % 8].astype(float).T)
    assert np.abs(together - np.eye(5)).max() < 0.08
