"""Two views of a tile: what self-supervision learns to see as the same.

A view is a random part of the tile, enlarged to the size of the tile, turned, restained and recoloured. It depends on
(seed, group, view, slide, tile) only.

Shapes: n patches of h x w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsi_ips.config import AugmentSection
from wsi_ips.model.net import to_float
from wsi_ips.scanning import Prepare, Winners
from wsi_ips.tiles.stream import PatchChunk
from wsi_ips.training.augment import CROP, augment, tile_keys, uniform_numbers

VIEWS = 2


def two_views(chunk: PatchChunk, slides: int) -> Winners:
    """Return every tile of a chunk twice, to be prepared by :func:`view_pixels`: first all first views."""
    slot, tile = chunk.slot.astype(np.int64), chunk.tile.astype(np.int64)
    return Winners(
        [chunk.pixels] * VIEWS,
        np.concatenate([slot + view * slides for view in range(VIEWS)]),
        np.tile(tile, VIEWS),
        (len(tile),) * VIEWS,
    )


def view_pixels(
    slide_ids: Sequence[str],
    *,
    seed: int,
    group: int,
    strengths: AugmentSection,
    smallest: float,
    device: torch.device,
) -> Prepare:
    """Return the function that makes the views of a group of tiles; slots are those of :func:`two_views`."""

    def prepare(pixels: Tensor, slot: NDArray[np.integer], tile: NDArray[np.integer]) -> Tensor:
        keys = np.empty(len(tile), np.uint64)
        for value in np.unique(slot):
            view, slide = divmod(int(value), len(slide_ids))
            rows, epoch = slot == value, VIEWS * group + view
            keys[rows] = tile_keys(seed=seed, epoch=epoch, slide_id=slide_ids[slide], tiles=tile[rows])
        return augment(cropped(to_float(pixels.to(device)), keys, smallest), keys, strengths)

    return prepare


def cropped(patches: Tensor, keys: NDArray[np.uint64], smallest: float) -> Tensor:
    """Return a random square part of each patch, (n, 3, h, w), enlarged to h x w; memory is channels last.

    The part covers ``smallest`` to 1 of the patch's area.
    """
    drawn = uniform_numbers(keys, CROP, 3)
    side = np.sqrt(smallest + (1 - smallest) * drawn[:, 0])  # of the part; the patch's is 1
    shift = (1 - side)[:, None] * (2 * drawn[:, 1:] - 1)  # of the centre, (n, 2); the patch reaches from -1 to 1
    places = np.zeros((len(keys), 2, 3))
    places[:, 0, 0] = places[:, 1, 1] = side
    places[:, :, 2] = shift
    grid = functional.affine_grid(torch.from_numpy(places).to(patches), list(patches.shape), align_corners=False)
    parts = functional.grid_sample(patches, grid, padding_mode="border", align_corners=False)
    return parts.contiguous(memory_format=torch.channels_last)
