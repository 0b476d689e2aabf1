"""The report: self-contained, escaped, problems first, sorted by suspicion."""

from __future__ import annotations

import re

import numpy as np

from wsi_ips.evaluation.slide_evaluation import Scored, evaluate_slides
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.results.report import render_report
from wsi_ips.results.report_data import Figure, MapPicture, ReportData, SlideEntry, TopTile


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
