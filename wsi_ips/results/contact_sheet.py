"""Contact sheet of a cohort: every slide with its tissue mask and tiles, the most suspicious first."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

PER_PAGE = 200
"""Slides per page; a preview is about 40 kB."""
MOST_LESIONS = 8
STATE_WEIGHTS = {"failed": 1000, "empty": 500}


@dataclass(frozen=True)
class SheetEntry:
    """A slide on the sheet."""

    slide_id: str  # slide_id, state, reason: Identity and state
    state: str
    reason: str
    preview: bytes | None  # JPEG; None where the slide was not tiled
    facts: Mapping[str, Any]  # Content of ``tissue/<slide_id>.json``; empty where the slide was not tiled

    @property
    def doubt(self) -> int:
        """Sort key: slides with a higher value come first."""
        lost = sum(bool(lesion["lost_to"]) for lesion in self.lesions)
        return STATE_WEIGHTS.get(self.state, 0) + 50 * lost + int(self.facts.get("suspicion", 0))

    @property
    def lesions(self) -> Sequence[Mapping[str, Any]]:
        """Annotated lesions, largest first."""
        return self.facts.get("lesions") or ()

    @property
    def shown_lesions(self) -> Sequence[Mapping[str, Any]]:
        """Lesions to show: lost ones first, then the largest."""
        return sorted(self.lesions, key=lambda lesion: not lesion["lost_to"])[:MOST_LESIONS]

    @property
    def remarks(self) -> Sequence[str]:
        """Remarks of the tissue check."""
        return list(self.facts.get("remarks", ()))

    @property
    def flagged(self) -> str:
        """Flags with the number of tiles that have them."""
        return ", ".join(f"{flag} {count}" for flag, count in self.facts.get("flagged", {}).items() if count)

    def __getattr__(self, name: str) -> Any:
        """Return a value of ``facts``, for the template."""
        if name in ("tiles", "tissue_mm2", "method", "left_out"):
            return self.facts.get(name)
        raise AttributeError(name)


def page_name(number: int) -> str:
    """Return the file name of a page, counted from 1."""
    return "index.html" if number == 1 else f"page-{number}.html"


def render_sheet(title: str, entries: Sequence[SheetEntry]) -> dict[str, str]:
    """Return all pages as HTML by file name: no scripts, no external resources, all text escaped.

    Previews are embedded; the full-size pictures beside the page are linked.
    """
    environment = Environment(
        loader=PackageLoader("wsi_ips.results"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["data_uri"] = _data_uri
    ordered = sorted(entries, key=lambda entry: (-entry.doubt, entry.slide_id))
    pages = max(1, math.ceil(len(ordered) / PER_PAGE))
    common = {"title": title, "total": len(entries), "pages": pages, "page_name": page_name} | _figures(entries)
    template = environment.get_template("tissue.html.j2")
    return {
        page_name(page): template.render(page=page, slides=ordered[(page - 1) * PER_PAGE : page * PER_PAGE], **common)
        for page in range(1, pages + 1)
    }


def recall_figures(entries: Sequence[SheetEntry]) -> dict[str, float]:
    """Return the number of lesions and lost lesions, and the shares of annotated area in tissue and in tiles."""
    lesions = [lesion for entry in entries for lesion in entry.lesions]
    area = math.fsum(lesion["area_um2"] for lesion in lesions)
    shares = {
        name: math.fsum(lesion["area_um2"] * lesion[name] for lesion in lesions) / area if area else 0.0
        for name in ("in_tissue", "in_tiles")
    }
    return {"lesions": len(lesions), "lost": sum(bool(lesion["lost_to"]) for lesion in lesions), **shares}


def _figures(entries: Sequence[SheetEntry]) -> dict[str, Any]:
    return recall_figures(entries) | {
        "doubtful": sum(bool(entry.remarks) for entry in entries),
        "failed": sum(entry.state == "failed" for entry in entries),
        "empty": sum(entry.state == "empty" for entry in entries),
    }


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
