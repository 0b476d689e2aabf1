"""The way of a cohort to the figures, and what counts as a wrong call."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wsi_ips.results.report import MOST_PICTURES, worth_pictures
from wsi_ips.results.report_data import SlideEntry, cohort_flow, outcome_of

PLAIN = SlideEntry("a", "ok", "", "tumor", "test", 0.9, "tumor", 10, 1.0, positive=True)


def flow(*slides: SlideEntry, trained_here: bool = True) -> list[tuple[str, int, dict[str, tuple[str, ...]]]]:
    steps = cohort_flow(slides, "test", predict_splits=("test",), trained_here=trained_here)
    return [(s.name, s.slides, {loss.reason: loss.slides for loss in s.lost}) for s in steps]


def test_every_slide_is_lost_at_one_step_with_its_reason():
    train = replace(PLAIN, split="train", probability=None)
    found = flow(
        PLAIN,
        replace(PLAIN, slide_id="damaged", state="failed", stage="tile", is_tiled=False, probability=None),
        replace(PLAIN, slide_id="glass", state="empty", tiles=0, tissue_mm2=0.0, probability=None),
        replace(PLAIN, slide_id="small", state="empty", tiles=0, tissue_mm2=0.1, probability=None),
        replace(train, slide_id="learned"),
        replace(train, slide_id="nameless", label="", has_label=False),
        replace(train, slide_id="unread", state="failed", stage="train"),
        replace(PLAIN, slide_id="waiting", probability=None),
        replace(PLAIN, slide_id="unlabelled", label="", has_label=False, positive=None),
    )
    assert found == [
        ("in the manifest", 9, {}),
        ("readable", 8, {"failed in stage tile": ("damaged",)}),
        ("with tissue", 7, {"without tissue": ("glass",)}),
        ("with tiles", 6, {"with tissue but no tile of it": ("small",)}),
        (
            "for training (split train)",
            1,
            {"without a label": ("nameless",), "whose tiles could not be read": ("unread",)},
        ),
        ("predicted", 2, {"not predicted yet": ("waiting",)}),
        ("measured (split test)", 1, {"without a label": ("unlabelled",)}),
    ]


def test_a_model_from_elsewhere_learned_from_no_slide_here():
    assert "for training (split train)" not in [step[0] for step in flow(PLAIN, trained_here=False)]


@pytest.mark.parametrize(
    ("positive", "probability", "outcome"),
    [(True, 0.5, ""), (True, 0.49, "missed"), (False, 0.5, "false alarm"), (False, 0.49, ""), (None, 0.9, "")],
)
def test_a_slide_at_the_threshold_is_called_positive(positive, probability, outcome):
    assert outcome_of(positive, probability, 0.5) == outcome
    assert outcome_of(positive, None, 0.5) == outcome_of(positive, probability, None) == ""


def test_wrong_calls_get_pictures_first_and_slides_without_heatmaps_none():
    right = [replace(PLAIN, slide_id=f"r{i}", probability=1 - i / 100) for i in range(70)]
    missed = [replace(PLAIN, slide_id=f"m{i}", probability=0.1 + i / 100, outcome="missed") for i in range(3)]
    names = worth_pictures([*right, *missed], {s.slide_id for s in (*right[1:], *missed)})
    assert names[:4] == ["m0", "m1", "m2", "r1"]
    assert len(names) == MOST_PICTURES
