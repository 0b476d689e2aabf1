"""Picture of a tissue mask and its tiles: what was analysed and what was not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from wsi_ips.geometry import Size
from wsi_ips.results.frame import INK, PAPER, SOFT_INK, font
from wsi_ips.slides import RGB

EDGE, TILE = (0, 110, 60), (30, 90, 200)
LONGEST_PX, FOOTER_PX = 1024, 40


def draw_tissue(
    thumbnail: RGB,
    mask: NDArray[np.bool_],
    boxes_px0: NDArray[np.float64],
    *,
    px0_size: Size,
    caption: str,
) -> Image.Image:
    """Thumbnail with the outline of the tissue (green) and the tiles (blue); glass is left pale.

    Parameters
    ----------
    thumbnail, mask
        The slide and its mask, of one shape (height, width).
    boxes_px0
        Tiles x, y, width, height in level-0 pixels, shape (N, 4).
    px0_size
        Size of level 0.
    caption
        Line below the picture.
    """
    shrink = max(1, -(-max(mask.shape) // LONGEST_PX))
    image = Image.fromarray(thumbnail).reduce(shrink)
    small = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    pixels = np.asarray(image).copy()
    pixels[~small] = (pixels[~small].astype(np.uint16) + 255) // 2
    scale = np.array([image.width / px0_size.width, image.height / px0_size.height] * 2)
    tiled = Image.fromarray(pixels)
    draw = ImageDraw.Draw(tiled, "RGBA")
    for x, y, width, height in (boxes_px0 * scale).tolist():
        draw.rectangle([x, y, x + width, y + height], outline=(*TILE, 90))
    pixels = np.asarray(tiled).copy()
    pixels[small & ~ndimage.binary_erosion(small)] = EDGE
    page = Image.new("RGB", (max(480, image.width), image.height + FOOTER_PX), PAPER)
    page.paste(Image.fromarray(pixels), (0, 0))
    text = ImageDraw.Draw(page)
    text.text((8, image.height + 5), caption, INK, font(13))
    text.text((8, image.height + 22), "green: edge of tissue · blue: tiles · pale: not analysed", SOFT_INK, font(11))
    return page
