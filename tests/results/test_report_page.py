"""The page: usable by keyboard, on paper, without scripts, and honest about figures."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from wsi_ips.evaluation import auc_with_interval, roc_curve, slide_intervals
from wsi_ips.results import Figure, ReportData, SlideEntry, TopTile, render_report, write_report
from wsi_ips.results.roc import SIDE, roc_points

TRUTH, SCORE = [0, 0, 0, 1, 1, 1], [0.1, 0.4, 0.6, 0.55, 0.7, 0.9]
VOID = {"meta", "img", "br", "line", "rect", "polyline", "polygon"}
NASTY = '"><script>alert(1)</script><img src=x onerror="alert(2)">'


def slide(slide_id: str, probability: float | None, **changes) -> SlideEntry:
    plain = SlideEntry(slide_id, "ok", "", "tumor", "test", probability, "tumor", 42, 3.2)
    return replace(plain, **changes)


DRAWN = {"overlays": (b"one", b"two"), "top": (TopTile(b"tile", 0.99991, 12_345, 678),), "tile_um": 112.0}
DATA = ReportData(
    title="run",
    positive_class="tumor",
    model_id="net-1",
    figures=(Figure("time", "7 s"),),
    auc=auc_with_interval(TRUTH, SCORE),
    roc=tuple(tuple(rate.tolist()) for rate in roc_curve(TRUTH, SCORE)),
    slides=(slide("a", 0.2, **DRAWN), slide("b", 0.9998, **DRAWN)),
    facts=(("made", "today"),),
    recipe="name: x\n",
    metrics=tuple(slide_intervals(TRUTH, SCORE).items()),
)


class Page(HTMLParser):
    """Tags with attributes in order; open and closing tags must match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_no_text_of_any_field_becomes_markup() -> None:
    entry = slide(NASTY, 0.5, label=NASTY, split=NASTY, predicted=NASTY, **DRAWN)
    failed = slide(NASTY, None, state="failed", reason=NASTY)
    data = replace(
        DATA,
        title=NASTY,
        model_id=NASTY,
        positive_class=NASTY,
        figures=(Figure(NASTY, NASTY, NASTY),),
        slides=(entry, failed),
        facts=((NASTY, NASTY),),
        recipe=NASTY,
        metrics=((NASTY, DATA.metrics[0][1]),),
    )
    page = Page(render_report(data))
    assert not page.all("script")
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in page.all("img"))


def test_every_link_lands_somewhere_and_no_name_is_given_twice() -> None:
    page = Page(render_report(replace(DATA, slides=(*DATA.slides, slide("c", None, state="failed", reason="why")))))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {(link["href"] or "")[1:] for link in page.all("a")} <= set(ids)


def test_pictures_are_enlarged_and_closed_by_links_alone() -> None:
    page = Page(render_report(DATA))
    figures = [figure["id"] for figure in page.all("figure")]
    links = [link["href"] for link in page.all("a")]
    assert len(figures) == 4
    assert all(f"#{figure}" in links for figure in figures)
    assert sum(link.get("class") == "close" for link in page.all("a")) == 4


def test_tables_have_headers_and_scroll_by_keyboard() -> None:
    page = Page(render_report(DATA))
    assert all(header.get("scope") in ("col", "row") for header in page.all("th"))
    regions = [d for d in page.all("div") if d.get("class") == "scroll"]
    assert regions
    assert all(r["tabindex"] == "0" and ("aria-label" in r or "aria-labelledby" in r) for r in regions)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))


def test_failed_slides_stand_before_empty_ones() -> None:
    html = render_report(
        replace(
            DATA,
            slides=(
                slide("e", None, state="empty", reason="no tissue"),
                slide("f", None, state="failed", reason="no scale"),
            ),
        )
    )
    assert html.index("no scale") < html.index("no tissue")
    assert "No slide was predicted." in html


def test_figures_stand_with_their_intervals() -> None:
    html = render_report(DATA)
    for _, interval in DATA.metrics:
        assert f"{interval.low:.3f} – {interval.high:.3f}" in html
    assert "Sensitivity" in html
    assert "Average precision" in html


def test_a_run_without_auc_has_a_page() -> None:
    html = render_report(replace(DATA, auc=None, roc=((), ()), metrics=(), slides=()))
    assert "<svg" not in html
    assert "Research use only" in html


def test_rounding_makes_up_no_certainty_on_the_page() -> None:
    html = render_report(replace(DATA, metrics=()))  # a sensitivity may truly be 1
    assert "&gt; 0.999" in html
    assert not re.search(r">1\.000<", html)


def test_roc_points_start_at_the_lower_left() -> None:
    assert roc_points(*(np.array(rate) for rate in DATA.roc)).startswith(f"0.0,{SIDE:.1f} ")
    assert roc_points(*DATA.roc).endswith(f"{SIDE:.1f},0.0")


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "report" / "index.html", DATA)
    assert (tmp_path / "report" / "index.html").read_text(encoding="utf-8") == render_report(DATA)
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]
