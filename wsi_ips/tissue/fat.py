"""Fat: a net of walls too thin for any threshold on a pixel. Pure."""

from __future__ import annotations

import math

import numpy as np

from wsi_ips.tissue.raster import Bools, box_share, closed, dilated, local_minimum
from wsi_ips.tissue.view import View

LUMEN_UM = 80.0
"""A wall stands out against the lightest place within half of it: the inside of the next cell."""
MESH_UM = 64.0
"""Cells up to this width are closed; adipocytes have 50 to 100 µm, and walls take part of it."""
LEAST_STEP = 3
"""Grey levels (of 255) by which a wall stands out at least; more where the glass is noisier."""
COLOURED = 0.6
"""Walls are coloured: at least so much of the limit above which a pixel is no noise of the glass."""
WINDOW_UM = 160.0
LEAST_WALLS = 0.2
"""Share of a window that walls take up in fat; dust and single fibres take up less."""


def find_fat(view: View, *, step_um: float) -> Bools:
    """Areas full of thin walls around empty cells.

    Parameters
    ----------
    view
        The thumbnail; nothing is found where no glass was seen.
    step_um
        µm per pixel.
    """
    if view.glass.share == 0:
        return np.zeros(view.density.shape, bool)
    radius = max(1, round(LUMEN_UM / step_um / 2))
    noise = max(LEAST_STEP, math.ceil(view.glass.density_noise * 255))
    walls = (view.density > local_minimum(view.density, radius) + np.uint8(noise)) & view.usable
    # Stitched fields differ in density too, but not in colour.
    walls &= view.saturation > COLOURED * view.glass.saturation * 255
    side = 2 * round(WINDOW_UM / step_um / 2) + 1
    dense = box_share(walls, side) >= LEAST_WALLS
    mesh = closed(walls, round(MESH_UM / step_um / 2)) & dilated(dense, side // 4)
    return ~dilated(~mesh, 1)  # smoothing has widened the outermost walls by a pixel
