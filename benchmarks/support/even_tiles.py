"""No selection, for comparison: M tiles at equal steps over those scanned instead of the best M."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_ips.model import selection

EVEN = "even tiles"
"""Among the changes of a variant: not a key of the recipe, but this comparison."""


def even_tiles(logits: NDArray[np.float32], memory_size: int) -> NDArray[np.intp]:
    """Positions of M of S tiles at equal steps, whatever their logits, shape (S, T, H) to (M,)."""
    count = min(memory_size, len(logits))
    return (2 * np.arange(count) + 1) * len(logits) // (2 * count)


def recipe_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """The keys among the changes; with :data:`EVEN` this process keeps even tiles from here on."""
    if changes.get(EVEN):
        selection.best_tiles = even_tiles
    return {key: value for key, value in changes.items() if key != EVEN}
