"""Which stated scale is believed: pure, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping

from wsi_ips.geometry import Scale

MPP_RANGE = (0.01, 100.0)
"""µm/px outside are no scale of a slide: 352.8 is 72 dpi, 264.6 is 96 dpi, 1000 is "no unit"."""


def trusted_mpp(properties: Mapping[str, str], *, prefix: str) -> tuple[Scale | None, str]:
    """The scale a file states, where it can be believed.

    Parameters
    ----------
    properties
        Metadata of the file, as text.
    prefix
        ``openslide`` or ``tiffslide``: whose ``mpp-x`` and ``mpp-y`` to read.

    Returns
    -------
    mpp
        µm per level-0 pixel per axis, or None.
    source
        The properties' name, or the reason why there is no scale.
    """
    names = [f"{prefix}.mpp-x", f"{prefix}.mpp-y"]
    texts = [properties.get(name, "") for name in names]
    if not all(texts):
        return None, "the file states none"
    try:
        x, y = (float(text) for text in texts)
    except ValueError:
        return None, f"{names[0]} = {texts[0]} is no number"
    low, high = MPP_RANGE
    if not all(math.isfinite(v) and low <= v <= high for v in (x, y)):
        return (
            None,
            f"{names[0]} = {x:.6g} is no scale of a slide but a default of the software that wrote it",
        )
    return Scale(x, y), names[0].removesuffix("-x")
