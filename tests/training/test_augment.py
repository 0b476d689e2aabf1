"""Augmentation depends on seed, epoch, slide and tile, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsi_ips.training.augment import augment, tile_keys


def keys(**changes):
    arguments = {"seed": 1, "epoch": 2, "slide_id": "a", "tiles": np.arange(400)} | changes
    return tile_keys(**arguments)


def test_a_patch_is_changed_alike_in_any_chunk():
    patches = torch.rand(20, 3, 8, 8)
    some = keys(tiles=np.arange(20))
    whole = augment(patches, some)
    picked = np.array([17, 3, 11])
    torch.testing.assert_close(augment(patches[picked], some[picked]), whole[picked], rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}, {"slide_id": "b"}])
def test_each_ingredient_matters(change):
    assert not np.isin(keys(**change), keys()).any()


def test_all_eight_positions_occur_about_equally():
    counts = np.bincount((keys() & np.uint64(7)).astype(int), minlength=8)
    assert counts.min() > 25
    assert counts.max() < 80


def test_geometry_is_a_turn_or_mirror_and_colour_a_power():
    patch = torch.linspace(0.1, 0.9, 3 * 4 * 4).view(1, 3, 4, 4)
    for key in keys()[:30]:
        out = augment(patch, np.array([key]), jitter=0.0)[0]
        positions = [torch.rot90(p, k, (1, 2)) for k in range(4) for p in (patch[0], patch[0].flip(2))]
        assert any(torch.allclose(out, p) for p in positions)
    restained = augment(patch, keys()[:1], jitter=0.2).log() / augment(patch, keys()[:1], jitter=0.0).log()
    per_channel = restained[0].flatten(1)
    torch.testing.assert_close(per_channel, per_channel[:, :1].expand_as(per_channel), rtol=1e-4, atol=1e-4)
    assert (per_channel - 1).abs().max() <= 0.2 + 1e-4
