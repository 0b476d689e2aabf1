"""Two views of a tile differ, and each follows from seed, group, view, slide and tile."""

from __future__ import annotations

import numpy as np
import torch

from wsi_ips.config import AugmentSection
from wsi_ips.tiles.stream import PatchChunk
from wsi_ips.training.augment import tile_keys
from wsi_ips.training.tile_views import cropped, two_views, view_pixels

SLIDES = ["a", "b", "c"]
CPU = torch.device("cpu")


def chunk(slot: list[int], tile: list[int]) -> PatchChunk:
    """Tiles whose pixels follow from slide and tile."""
    pixels = [
        np.random.default_rng([s, t]).integers(0, 256, (8, 8, 3), np.uint8) for s, t in zip(slot, tile, strict=True)
    ]
    return PatchChunk(np.stack(pixels), np.array(slot, np.int32), np.array(tile, np.int32))


def views(slot: list[int], tile: list[int], *, seed: int = 1, group: int = 4) -> torch.Tensor:
    """The views of some tiles, (2, n, 3, h, w)."""
    winners = two_views(chunk(slot, tile), len(SLIDES))
    prepare = view_pixels(SLIDES, seed=seed, group=group, strengths=AugmentSection(), smallest=0.4, device=CPU)
    return winners.patches(0, len(winners), prepare).unflatten(0, (2, -1))


def test_a_view_does_not_depend_on_the_other_tiles_of_its_group():
    whole = views([0, 1, 2, 2], [5, 5, 5, 6])
    part = views([2, 0], [6, 5])
    torch.testing.assert_close(part, whole[:, [3, 0]], rtol=0, atol=0)


def test_views_differ_from_each_other_and_with_every_ingredient():
    first, second = views([0], [5])
    assert not torch.allclose(first, second, atol=0.02)
    for other in (views([0], [5], seed=2), views([0], [5], group=5)):
        assert not torch.allclose(other[0], first, atol=0.02)
    assert first.min() >= 0
    assert first.max() <= 1


def test_a_crop_shows_a_square_part_of_the_right_area_anywhere_in_the_tile():
    """Each pixel of the input holds its place, so the output says which part it shows."""
    side, count = 32, 400
    place = (torch.arange(side) + 0.5) / side
    patches = torch.stack([*torch.meshgrid(place, place, indexing="xy"), torch.zeros(side, side)]).repeat(
        count, 1, 1, 1
    )
    keys = tile_keys(seed=0, epoch=0, slide_id="s", tiles=np.arange(count))
    found = cropped(patches, keys, 0.25)
    assert found.is_contiguous(memory_format=torch.channels_last)
    inside = found[:, :2, 1:-1, 1:-1]  # at the border of the tile the outermost pixels are repeated
    step = (inside.amax((2, 3)) - inside.amin((2, 3))) / (side - 3)  # (n, 2), distance of neighbours
    area = (step * side).prod(1)
    torch.testing.assert_close(step[:, 0], step[:, 1], rtol=0, atol=1e-4)
    assert 0.24 < area.min() < 0.3
    assert 0.95 < area.max() < 1.01
    centre = inside.mean((2, 3))
    assert (centre.amin(0) < 0.3).all()
    assert (centre.amax(0) > 0.7).all()


def test_the_smallest_share_of_one_shows_the_whole_tile():
    patches = torch.rand(3, 3, 16, 16)
    keys = tile_keys(seed=0, epoch=0, slide_id="s", tiles=np.arange(3))
    torch.testing.assert_close(cropped(patches, keys, 1.0), patches)
