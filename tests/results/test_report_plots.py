"""Plots: things stand where their numbers say, text is text, and no name of any field becomes markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from wsi_ips.evaluation.classification import roc_curve
from wsi_ips.evaluation.froc import Froc
from wsi_ips.evaluation.localisation import Localisation
from wsi_ips.evaluation.slide_evaluation import Scored, evaluate_slides
from wsi_ips.results import report_plots
from wsi_ips.results.report_plots import HEIGHT, WIDTH, Axis, Series, fitted_axis, plot, share_axis

X, Y = share_axis("across"), share_axis("up")
NASTY = '"><script>alert(1)</script>'


def places(svg: str, name: str) -> list[tuple[float, float]]:
    """Points of the longest path of a class."""
    paths = re.findall(rf'<path class="{name}" d="M([^"]+)"', svg)
    longest = max(paths, key=len)
    return [tuple(float(v) for v in point.split()) for point in longest.split("L")]


def test_a_line_runs_from_the_lower_left_to_the_upper_right():
    svg = plot("title", X, Y, [Series("one", (0, 0.5, 1), (0, 0.25, 1))])
    assert places(svg, "s0") == [(0, HEIGHT), (WIDTH / 2, HEIGHT * 0.75), (WIDTH, 0)]


def test_steps_stay_level_until_the_next_value():
    svg = plot("title", X, Y, [Series("one", (0, 0.5, 1), (0.2, 0.4, 1), "steps", 2)])
    expected = [(0, 0.2), (0.5, 0.2), (0.5, 0.4), (1, 0.4), (1, 1)]
    assert places(svg, "s2") == [(pytest.approx(a * WIDTH), pytest.approx((1 - b) * HEIGHT)) for a, b in expected]


def test_what_lies_beyond_an_axis_is_drawn_at_its_end():
    axis = Axis("fp", 0.125, 8, (1.0,), log=True)
    assert axis.place(0) == 0
    assert axis.place(100) == 1
    assert axis.place(1) == pytest.approx(0.5)


def test_points_have_their_intervals_and_marks_their_place():
    svg = plot("t", X, Y, [Series("p", (0.5,), (0.6,), "points", 1, (0.2,), (0.9,))], [(0.25, "here")])
    assert f'd="M{WIDTH / 2:.1f} {HEIGHT * 0.8:.1f}V{HEIGHT * 0.1:.1f}"' in svg
    assert f'<path class="mark m0" d="M{WIDTH / 4:.1f} 0V' in svg
    assert ">here</text>" in svg


def test_a_plot_is_whole_xml_and_text_of_any_field_is_escaped():
    svg = plot(NASTY, Axis(NASTY, 0, 1, (0.0,), names=(NASTY,)), Y, [Series(NASTY, (0, 1), (0, 1))], [(0.5, NASTY)])
    root = ET.fromstring(svg)
    assert not [e for e in root.iter() if e.tag == "script"]
    assert sum(e.text == NASTY for e in root.iter("text")) == 4
    assert root.get("aria-label") == NASTY


def test_a_long_curve_takes_no_more_than_a_screen_shows():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 60_000)
    false, true = roc_curve(truth, rng.normal(size=60_000) + truth)
    svg = plot("roc", X, Y, [Series("all", false.tolist(), true.tolist())])
    assert len(svg) < 40_000
    drawn = np.array(places(svg, "s0")) / (WIDTH, HEIGHT)
    back = np.interp(drawn[:, 0], false, true)
    assert np.abs(back - (1 - drawn[:, 1])).max() < 0.01


def test_small_numbers_are_told_in_powers_of_ten():
    axis = fitted_axis("rate", [0.0004, 0.0])
    assert axis.label == "rate, in 1e-4"
    assert axis.texts()[0] == "0"
    assert all(len(text) <= 4 for text in axis.texts())
    assert axis.place(0.0004) == 1
    assert fitted_axis("none", [0.0]).high == 1


def evaluated():
    rng = np.random.default_rng(1)
    truth = np.arange(60) % 2
    return evaluate_slides(Scored(truth, 1 / (1 + np.exp(-(rng.normal(size=60) + 2 * truth - 1)))), threshold=0.4)


def test_the_roc_plot_marks_the_threshold_where_the_confusion_matrix_has_it():
    found = evaluated()
    circle = re.search(r'<circle class="s1" cx="([\d.]+)" cy="([\d.]+)"', report_plots.roc_plot(found))
    c = found.confusion
    assert float(circle[1]) / WIDTH == pytest.approx(c.false_positive / 30, abs=0.001)
    assert 1 - float(circle[2]) / HEIGHT == pytest.approx(c.true_positive / 30, abs=0.001)


def test_every_slide_is_a_dot_beside_the_threshold_it_fell_on():
    found = evaluated()
    scored = [(0.1, False), (0.9, True), (0.3, True)]
    svg = report_plots.score_plot(found, scored, ("without", "with tumor"))
    dots = re.findall(r'<circle class="dot s(\d)" cx="([\d.]+)" cy="[\d.]+" r="3"', svg)
    assert sorted((int(s), round(float(x) / WIDTH, 2)) for s, x in dots) == [(0, 0.1), (1, 0.3), (1, 0.9)]
    mark = re.search(r'<path class="mark m0" d="M([\d.]+) 0V', svg)
    assert float(mark[1]) / WIDTH == pytest.approx(0.4)


def test_the_froc_plot_passes_through_the_sensitivity_at_each_target():
    curve = Froc(np.array([0.0, 0.25, 0.5, 4.0]), np.array([0.0, 0.4, 0.6, 0.8]), 0.6, 5, 4)
    assert report_plots.froc_plot(Localisation()) is None
    points = places(report_plots.froc_plot(Localisation(lesions_by_peaks=curve)), "s0")
    x = Axis("", 0.125, 16, (), log=True)
    for target in (0.25, 0.5, 4.0):
        reached = [1 - b / HEIGHT for a, b in points if abs(a - x.place(target) * WIDTH) < 0.1]
        assert max(reached) == pytest.approx(curve.at(target), abs=0.001)
    assert points[-1] == (WIDTH, pytest.approx(0.2 * HEIGHT))


def test_learning_curves_show_what_is_there_and_no_more():
    epochs = tuple(
        {"epoch": e, "loss": 1 / e, "val_loss": None if e < 3 else 0.5, "learning_rate": 1e-4} for e in range(1, 6)
    )
    drawn = dict(report_plots.learning_plots(report_plots.History(epochs, kept=4, warm_start=2)))
    assert list(drawn) == ["Loss", "Learning rate"]
    assert "epoch kept: 4" in drawn["Loss"]
    assert "selection begins" in drawn["Loss"]
    assert len(places(drawn["Loss"], "s1")) == 3  # validation from epoch 3 on
    with_auc = tuple(e | {"val_auc": 0.8, "accuracy": 0.7} for e in epochs)
    assert "validation AUC" in dict(report_plots.learning_plots(report_plots.History(with_auc)))["Right predictions"]
    assert report_plots.learning_plots(report_plots.History(epochs[:1])) == []
    watched = tuple(e | {"guess_loss": 1.4, "kept_in_outlines": 0.1 * e["epoch"]} for e in epochs)
    drawn = dict(report_plots.learning_plots(report_plots.History(watched)))
    assert "training, by guessing" in drawn["Loss"]
    assert "kept tiles inside outlines" in drawn["Selection"]


def test_points_that_no_screen_tells_apart_are_one_but_ends_stay():
    svg = plot("t", X, Y, [Series("one", np.linspace(0, 0.001, 50).tolist(), [0.0] * 50)])
    assert places(svg, "s0")[0][0] == 0
    assert places(svg, "s0")[-1][0] == pytest.approx(0.3)
    assert report_plots.FINEST < 0.5
