"""The page: usable by keyboard, on paper, without scripts, and honest about figures."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from wsi_ips.evaluation.localisation import Localisation, SizeRecall
from wsi_ips.evaluation.slide_evaluation import Groups, Scored, evaluate_slides, evaluate_task
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.results.report import MOST_ALARMS, OPEN_ROWS, render_report, write_report
from wsi_ips.results.report_data import (
    CardSection,
    Figure,
    FlowStep,
    Loss,
    LostLesion,
    MapPicture,
    RecallRow,
    ReportData,
    SlideEntry,
    TopTile,
)
from wsi_ips.results.report_plots import History
from wsi_ips.tiles.recall import NotAnalysed

TRUTH, SCORE = [0, 0, 0, 1, 1, 1], [0.1, 0.4, 0.6, 0.55, 0.7, 0.9]
VOID = {"meta", "img", "br", "path", "rect", "circle"}
NASTY = '"><script>alert(1)</script><img src=x onerror="alert(2)">'


def slide(slide_id: str, probability: float | None, **changes) -> SlideEntry:
    plain = SlideEntry(slide_id, "ok", "", "tumor", "test", probability, "tumor", 42, 3.2)
    return replace(plain, **changes)


DRAWN = {
    "overlays": (MapPicture("one", b"one"), MapPicture("two", b"two")),
    "top": (TopTile(b"tile", 0.99991, 12_345, 678),),
    "tile_um": 112.0,
}
SCORED = Scored(np.array(TRUTH), np.array(SCORE))
EVALUATION = Evaluation(
    evaluate_slides(SCORED, groups=Groups({"centre": ["x", "y"] * 3}), threshold=0.5),
    Localisation(pointing=0.5, selection_recall=1.0, by_size=(SizeRecall("micro", 2, 2, 1),), tumour_slides=2),
    tasks=(evaluate_task("grade", ("low", "high"), np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]])),),
    notes=("a note",),
)
DATA = ReportData(
    title="run",
    positive_class="tumor",
    model_id="net-1",
    split="test",
    figures=(Figure("time", "7 s"),),
    slides=(slide("a", 0.2, **DRAWN), slide("b", 0.9998, **DRAWN)),
    facts=(("made", "today"),),
    recipe="name: x\n",
    evaluation=EVALUATION,
    flow=(FlowStep("in the manifest", 3), FlowStep("readable", 2, (Loss("failed in stage tile", ("c",)),))),
    history=History(({"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}), kept=2),
    recall=(RecallRow("micro", 4, 1, 0, 1, 0.9, 0.8),),
    lost_lesions=(LostLesion("a", 12, 34, 250.0, "micro", "segmentation"),),
    card=(CardSection("Limits", ("few slides",)),),
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


def test_tissue_that_was_not_analysed_is_in_worklist_and_card():
    unseen = NotAnalysed(0.25, {"pen": 0.6, "no tile": 0.2})
    page = render_report(replace(DATA, slides=(slide("a", 0.2, not_analysed=unseen, **DRAWN), slide("b", 0.1))))
    assert "not analysed: 25.0% of the tissue (pen 0.6 mm², no tile 0.2 mm²)" in page
    assert re.search(r'<td class="n off" title="pen 0.6 mm², no tile 0.2 mm²">25.0\s%</td>', page)


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
        split=NASTY,
        evaluation=replace(
            EVALUATION,
            slides=evaluate_slides(SCORED, groups=Groups({NASTY: [NASTY] * 6}), threshold=0.5),
            tasks=(evaluate_task(NASTY, (NASTY, "b"), np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]])),),
            notes=(NASTY,),
        ),
        flow=(FlowStep(NASTY, 1, (Loss(NASTY, (NASTY,)),), NASTY),),
        recall=(RecallRow(NASTY, 1, 0, 0, 0, 1.0, 1.0),),
        lost_lesions=(LostLesion(NASTY, 0, 0, 1.0, NASTY, NASTY),),
        card=(CardSection(NASTY, (NASTY,)),),
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
    figures = [figure["id"] for figure in page.all("figure") if "id" in figure]
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


def test_a_warning_stands_before_everything_and_is_read_aloud() -> None:
    html = render_report(replace(DATA, warning=f"learned nothing {NASTY}"))
    assert html.index("learned nothing") < html.index("<h1>")
    assert 'role="alert"' in html
    assert "<script" not in html
    assert 'role="alert"' not in render_report(DATA)


def test_without_a_background_class_the_page_promises_no_plain_slides() -> None:
    assert "should look like plain" in render_report(DATA)
    html = render_report(replace(DATA, has_background=False))
    assert "should look like plain" not in html
    assert "No class stands for" in html


def test_figures_stand_with_their_intervals() -> None:
    html = render_report(DATA)
    for interval in EVALUATION.slides.metrics.values():
        assert f"{interval.low:.3f} – {interval.high:.3f}" in html
        assert interval.method in html
    assert "Sensitivity" in html
    assert "Average precision" in html


def test_a_run_without_labels_has_a_page_that_makes_sense() -> None:
    bare = slide("new", 0.7, label="", split="", predicted="tumor", **DRAWN)
    html = render_report(
        replace(
            DATA, evaluation=Evaluation(None, notes=("no figures: nothing is labelled",)), slides=(bare,), history=None
        )
    )
    page = Page(html)
    assert not page.all("svg")
    assert "no figures: nothing is labelled" in html
    assert "Where it was wrong" not in html
    assert ">new<" in html
    assert "Research use only" in html


def test_an_empty_run_has_a_page() -> None:
    html = render_report(ReportData("r", "tumor", "m", "test", (), (), (), ""))
    assert "No slide was predicted." in html
    Page(html)


def test_rounding_makes_up_no_certainty_on_the_page() -> None:
    html = render_report(replace(DATA, evaluation=None))  # a sensitivity may truly be 1
    assert "&gt; 0.999" in html
    assert not re.search(r">1\.000<", html)


def test_all_missed_slides_are_shown_and_the_most_suspicious_false_alarms() -> None:
    missed = [slide(f"m{i}", 0.001 * i, outcome="missed", **DRAWN) for i in range(30)]
    alarms = [slide(f"f{i}", 0.6 + 0.001 * i, label="normal", outcome="false alarm") for i in range(30)]
    page = Page(html := render_report(replace(DATA, slides=(*missed, *alarms))))
    cards = [a["id"] for a in page.all("article")]
    assert len(cards) == 30 + MOST_ALARMS
    assert f"{MOST_ALARMS} of 30" in html
    failures = html[html.index('id="failures"') :]
    assert failures.index(">m0 ") < failures.index(">m29 ") < failures.index(">f29 ") < failures.index(">f10 ")
    assert ">f9 " not in failures
    assert "12345" in failures
    assert "No pictures on this page" in failures  # of the false alarms, which are named all the same


def test_the_confusion_matrix_and_the_groups_are_those_of_the_figures() -> None:
    html = render_report(DATA)
    c = EVALUATION.slides.confusion
    cells = re.findall(r"<td(?: class=\"off\")?>(\d+)</td>", html[html.index("Slides by label and call") :])[:4]
    assert [int(cell) for cell in cells] == [c.true_positive, c.false_negative, c.false_positive, c.true_negative]
    assert "centre: x" in html
    assert "Task grade" in html
    assert "No validation slide" not in html
    assert "The threshold was given." in html


def test_losses_of_the_cohort_stand_with_their_reason_and_slides() -> None:
    html = render_report(DATA)
    assert re.search(r"− 1 failed in stage tile: c<", html)
    assert "1 lost" in html
    assert "12, 34" in html


def test_a_cohort_of_a_thousand_slides_stays_a_page() -> None:
    rng = np.random.default_rng(0)
    picture, small, tile = (rng.bytes(size) for size in (100_000, 3_000, 4_000))
    top = tuple(TopTile(tile, 0.9, i, i) for i in range(12))
    slides = [slide(f"slide_{i:04}", 1 - i / 1000, thumbnail=small) for i in range(1000)]
    drawn = [
        replace(s, overlays=(MapPicture("one", picture), MapPicture("two", picture)), top=top) for s in slides[:60]
    ]
    began = time.monotonic()
    page = Page(html := render_report(replace(DATA, slides=(*drawn, *slides[60:]))))
    assert len(html) < 30_000_000
    assert time.monotonic() - began < 20
    assert html.count('<tr><td class="thumb"><img') == 1000
    assert f"{1000 - OPEN_ROWS} less suspicious slides" in html
    assert len([d for d in page.all("details") if "open" not in d]) == 2  # those, and the recipe


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    write_report(tmp_path / "report" / "index.html", DATA)
    assert (tmp_path / "report" / "index.html").read_text(encoding="utf-8") == render_report(DATA)
    assert [p.name for p in (tmp_path / "report").iterdir()] == ["index.html"]


def entry(name: str, probability: float | None, *, state="ok", reason="", overlays=()) -> SlideEntry:
    top = (TopTile(b"tile", 0.9, 12_345, 678),) if overlays else ()
    maps = tuple(MapPicture(f"{jpeg.decode()} map", jpeg) for jpeg in overlays)
    return SlideEntry(
        name, state, reason, "normal", "test", probability, "tumor", 42, 3.2, overlays=maps, top=top, tile_um=128.0
    )


def page(*slides: SlideEntry, evaluation=None) -> str:
    figures = (Figure("test AUC", "0.93", "12 slides"),)
    return render_report(
        ReportData("run <1>", "tumor", "demo-1", "test", figures, slides, (("made", "today"),), "name: x\n", evaluation)
    )


def test_text_from_files_cannot_become_markup():
    bad = "<script>alert(1)</script>"
    html = page(entry(bad, 0.5), entry("b", None, state="failed", reason=f"slide {bad}"))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "run &lt;1&gt;" in html


def test_nothing_is_fetched_from_anywhere():
    html = page(entry("a", 0.9, overlays=(b"one", b"two")))
    sources = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert sources
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert "url(" not in html
    assert "@import" not in html


def test_the_most_suspicious_slide_comes_first():
    html = page(entry("low", 0.1), entry("high", 0.9), entry("middle", 0.5))
    assert html.index(">high<") < html.index(">middle<") < html.index(">low<")


def test_failed_and_empty_slides_stand_before_everything_with_their_reason():
    html = page(entry("good", 0.9), entry("broken", None, state="failed", reason="damaged: copy it again"))
    assert html.index("damaged: copy it again") < html.index("Worklist")


def test_auc_is_shown_with_its_interval_and_counts():
    separated = Scored(np.repeat([0, 1], 12), np.linspace(0.01, 0.99, 24))
    html = page(entry("a", 0.9), evaluation=Evaluation(evaluate_slides(separated)))
    assert "On 12 slides with and 12 without" in html
    assert "0.735 – 1.000<small>Clopper-Pearson" in html
    assert "area 1.000" in html
    assert "The threshold is the default" in html


def test_links_from_the_worklist_reach_their_heatmap():
    html = page(entry("plain", 0.95), entry("drawn", 0.9, overlays=(b"one", b"two")))
    target = re.search(r'href="#(slide-\d+)">drawn<', html)
    assert target
    assert f'id="{target[1]}"' in html
    assert "12345" in html.replace(",", "")
    assert "128 µm" in html


def test_every_picture_has_a_text():
    html = page(entry("a", 0.9, overlays=(b"one", b"two")))
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 3
    assert "<figcaption>one map</figcaption>" in html
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
