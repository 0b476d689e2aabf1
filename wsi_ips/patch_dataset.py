"""A torch dataset of the patches of one or several slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wsi_ips.geometry import Point
from wsi_ips.slides import SlideReader, read_patch
from wsi_ips.tiles.stream import SlideTiles


class PatchDataset(Dataset[tuple[Tensor, int, int]]):
    """Patches of slides, read on demand; works with workers and shuffling of a ``DataLoader``.

    An item is ``(patch, slide, tile)``: the patch as float tensor in 0-1, shape (3, h, w), or what ``transform`` makes
    of it; the number of its slide among ``slides``; its row in that slide's tile index. Each worker opens its own
    slides.

    Parameters
    ----------
    slides
        From :func:`wsi_ips.make_tiles`.
    transform
        Called with each patch, for example a ``torchvision`` transform.

    Raises
    ------
    RegionReadError
        From an item whose pixels cannot be read; names slide, tile and place.
    """

    def __init__(self, slides: Sequence[SlideTiles], transform: Callable[[Tensor], Any] | None = None) -> None:
        self.slides, self.transform = tuple(slides), transform
        self._ends = np.cumsum([len(tiles.wanted) for tiles in self.slides])  # (B,)
        self._open: dict[int, SlideReader] = {}
        self._opened = ExitStack()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        item = range(len(self))[item]  # negative numbers, and IndexError past the end
        number = int(np.searchsorted(self._ends, item, "right"))
        tiles = self.slides[number]
        tile = int(tiles.wanted[item - (self._ends[number - 1] if number else 0)])
        index = tiles.index
        pixels = read_patch(self._reader(number), Point(int(index.x[tile]), int(index.y[tile])), index.plan)
        patch = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255  # (3, h, w)
        return (patch if self.transform is None else self.transform(patch)), number, tile

    def _reader(self, number: int) -> SlideReader:
        if number not in self._open:
            self._open[number] = self._opened.enter_context(self.slides[number].open())
        return self._open[number]

    def close(self) -> None:
        """Close the slides that this process has opened; they are opened again when needed."""
        self._open.clear()
        self._opened.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_opened": ExitStack()})
