"""The ROC curve as points of an SVG: the page draws it, so that it follows light, dark and print."""

from __future__ import annotations

from collections.abc import Sequence

SIDE = 260
"""Width and height of the plot in SVG units."""


def roc_points(false_rate: Sequence[float], true_rate: Sequence[float]) -> str:
    """Points of a polyline, origin at the top left as SVG has it.

    Parameters
    ----------
    false_rate, true_rate
        Rates 0-1 at every threshold, of one length.

    Examples
    --------
    >>> roc_points([0, 0.5, 1], [0, 1, 1])
    '0.0,260.0 130.0,0.0 260.0,0.0'
    """
    pairs = zip(false_rate, true_rate, strict=True)
    return " ".join(f"{x * SIDE:.1f},{(1 - y) * SIDE:.1f}" for x, y in pairs)
