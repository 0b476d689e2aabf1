"""The contact sheet: worst first, offline, escaped, in pages."""

from __future__ import annotations

import re

from wsi_ips.results.contact_sheet import PER_PAGE, SheetEntry, render_sheet

FACTS = {
    "tiles": 12,
    "tissue_mm2": 1.5,
    "method": "otsu: saturation > 0.1",
    "remarks": [],
    "suspicion": 0,
    "flagged": {"pen": 3, "blur": 0},
    "left_out": 3,
    "share_not_analysed": 0.1,
    "not_analysed_mm2": {"no tile": 0.15},
    "lesions": None,
}
LESION = {
    "size_class": "micro",
    "diameter_um": 400.0,
    "area_um2": 90_000.0,
    "in_tissue": 0.2,
    "in_tiles": 0.0,
    "lost_to": "segmentation",
}


def entry(name: str, state: str = "ok", reason: str = "", **facts: object) -> SheetEntry:
    return SheetEntry(name, state, reason, b"\xff\xd8jpeg", FACTS | facts)


def test_the_most_doubtful_slide_stands_first():
    entries = [
        entry("fine"),
        entry("inked", share_not_analysed=0.4, not_analysed_mm2={"pen": 0.45, "no tile": 0.15}),
        entry("pieces", remarks=["many pieces (99)"], suspicion=15),
        entry("lost", lesions=[LESION]),
        SheetEntry("broken", "failed", "no reader opens it", None, {}),
        entry("nothing", "empty", "no tissue found"),
    ]
    page = render_sheet("cohort", entries, "4.0% (pen 0.45 mm²)")["index.html"]
    assert page.index("Tissue not analysed: 4.0% (pen 0.45 mm²).") < page.index("<li id=")
    assert re.findall(r'<li id="(\w+)">', page) == ["broken", "nothing", "inked", "lost", "pieces", "fine"]
    assert "1 lesions, 1 lost" in page
    assert "flagged tiles: pen 3" in page
    assert "not analysed: 40.0% of the tissue (pen 0.45 mm², no tile 0.15 mm²)" in page


def test_names_are_escaped_and_nothing_is_fetched():
    page = render_sheet("<script>", [entry("<img src=x>", reason="a & b <b>")])["index.html"]
    assert "<script" not in page
    assert "<img src=x>" not in page
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "prefers-color-scheme: dark" in page


def test_large_cohorts_come_in_pages():
    pages = render_sheet("cohort", [entry(f"s{number}") for number in range(PER_PAGE + 1)])
    assert list(pages) == ["index.html", "page-2.html"]
    assert pages["page-2.html"].count("<li id=") == 1
