"""Pictures of the report: which slides get them, and files of the run folder shrunk to JPEG."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.results.report import MOST_ALARMS
from wsi_ips.results.report_data import SlideEntry

PICTURE_PX, TILE_SHOWN_PX, THUMBNAIL_PX = 1000, 112, (96, 72)
MOST_PICTURES = 60
"""Most slides with pictures on the page; those of the others are in the run folder."""
PICTURE_BYTES = 15_000_000
"""Most bytes of all large pictures together; as text on the page they take a third more."""


def worth_pictures(entries: Sequence[SlideEntry], drawn: Collection[str]) -> list[str]:
    """Return the slides to show with pictures: missed ones, false alarms, then the most suspicious.

    Parameters
    ----------
    entries
        All slides.
    drawn
        Slides with heatmaps, by slide_id.
    """
    order = sorted((e for e in entries if e.probability is not None), key=lambda e: -(e.probability or 0.0))
    missed = [e for e in order if e.outcome == "missed"][::-1]
    alarms = [e for e in order if e.outcome == "false alarm"][:MOST_ALARMS]
    names = [e.slide_id for e in (*missed, *alarms, *[e for e in order if not e.outcome])]
    return [name for name in names if name in drawn][:MOST_PICTURES]


def picture_bytes(entry: SlideEntry) -> int:
    """Return the size of a slide's large pictures."""
    return sum(len(p.jpeg) for p in entry.overlays) + sum(len(t.jpeg) for t in entry.top)


def overlay_picture(path: Path) -> bytes:
    """Shrink a heatmap picture."""
    image = Image.open(path).convert("RGB")
    image.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
    return _jpeg(image, 80)


def thumbnail(overlay: Path, tissue: Path) -> bytes | None:
    """Return a small picture of a slide: the map without its frame, else the picture of its tissue mask.

    Parameters
    ----------
    overlay
        Heatmap, beside its sidecar (JSON).
    tissue
        Slide and mask side by side, 8 px apart.
    """
    if overlay.exists() and overlay.with_suffix(".json").exists():
        x, y, width, height = json.loads(overlay.with_suffix(".json").read_text(encoding="utf-8"))["map_box_px"]
        with Image.open(overlay) as page:
            image = page.crop((x, y, x + width, y + height)).convert("RGB")
    elif tissue.exists():
        with Image.open(tissue) as both:
            image = both.crop((0, 0, max(1, (both.width - 8) // 2), both.height)).convert("RGB")
    else:
        return None
    image.thumbnail(THUMBNAIL_PX, Image.Resampling.BOX)
    return _jpeg(image, 70)


def tile_picture(patch: NDArray[np.uint8]) -> bytes:
    """Shrink a patch, uint8, shape (height, width, 3)."""
    return _jpeg(Image.fromarray(patch).resize((TILE_SHOWN_PX, TILE_SHOWN_PX), Image.Resampling.BICUBIC), 80)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
