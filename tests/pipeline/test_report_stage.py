"""Stage `report` on a finished run: what the page says is what the run holds; with labels and without."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.pipeline.test_run import done, finished, recipe_of  # noqa: F401 - fixtures
from wsi_ips.cli import app
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline import Run
from wsi_ips.pipeline.stages import report


def change_manifest(folder: Path, **columns: list[str]) -> None:
    path = folder / "cohort" / "manifest.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, cells in columns.items():
        for row, cell in zip(rows, cells, strict=True):
            row[name] = cell
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_the_command_makes_the_report_anew_and_keeps_what_the_run_cost(finished):  # noqa: F811
    out = finished / "out"
    before = json.loads((out / "summary.json").read_text())
    (out / "report" / "index.html").unlink()
    result = CliRunner().invoke(app, ["status", str(finished / "recipe.yaml"), "--report"])
    assert result.exit_code == 0, result.output
    after = json.loads((out / "summary.json").read_text())
    assert after["seconds"] == before["seconds"]
    assert after["test_auc"] == before["test_auc"]
    assert json.loads((out / "evaluation.json").read_text())["slides"]["threshold"] == after["test_threshold"]
    html = (out / "report" / "index.html").read_text()
    assert "Model card" in html
    assert "All slides are synthetic" in html
    assert 'aria-label="Loss by epoch"' in html
    steps = re.findall(r"<b>(\d+)</b><span>([^<]+)</span>", html)
    assert steps == [
        ("8", "in the manifest"),
        ("8", "readable"),
        ("8", "with tissue"),
        ("8", "with tiles"),
        ("4", "for training (split train)"),
        ("4", "predicted"),
        ("4", "measured (split test)"),
    ]


def test_what_was_called_wrongly_is_in_the_failures_and_sites_are_groups(finished):  # noqa: F811
    with Run.open(recipe_of(finished)) as run:
        test = [r for r in run.slides.records if r.split == "test"]
        scores = {r.slide_id: read_scores(run.folder.scores, r.slide_id).probability[-1] for r in test}
        labels = {r.slide_id: "normal" if scores[r.slide_id] >= 0.5 else "tumor" for r in test}  # all wrong
        if len(set(labels.values())) == 1:
            labels[test[0].slide_id] = "tumor" if labels[test[0].slide_id] == "normal" else "normal"
        cells = [labels.get(r.slide_id, r.label) for r in run.slides.records]
        names = [r.slide_id for r in run.slides.records]
    change_manifest(finished, label=cells, centre=["A" if i % 2 else "B" for i in range(len(cells))])
    with Run.open(recipe_of(finished)) as run:
        report(run, seconds=1)
    html = (finished / "out" / "report" / "index.html").read_text()
    failures = html[html.index('id="failures"') : html.index("How to read this page</h2>")]
    wrong = [n for n, label in labels.items() if (label == "tumor") != (scores[n] >= 0.5)]
    assert len(wrong) >= 3
    for name in names:
        card = re.search(rf"<h3>{name} <span class=\"tag (\w+)\">", failures)
        assert bool(card) == (name in wrong)
        if card:
            assert card[1] == ("missed" if labels[name] == "tumor" else "alarm")
    assert "centre: A" in html


def test_a_pure_prediction_has_a_page_that_makes_sense(finished):  # noqa: F811
    with Run.open(recipe_of(finished)) as run:
        count = len(run.slides.records)
        new = next(r.slide_id for r in run.slides.records if r.split == "test")
        split = ["" if r.split == "test" else r.split for r in run.slides.records]
    change_manifest(finished, label=[""] * count, split=split, annotation=[""] * count)
    recipe = recipe_of(finished, **{"predict.checkpoint": str(finished / "out" / "model")})
    with Run.open(recipe) as run:
        summary = report(run)
    html = (finished / "out" / "report" / "index.html").read_text()
    assert summary["test_auc"] is None
    assert any("no predicted slide of split `test`" in note for note in summary["notes"])
    assert f">{new}<" in html
    assert "Where it was wrong" not in html
    assert "trained elsewhere" in html
    assert "<svg" not in html


@pytest.mark.parametrize("stage", ["tile", "predict"])
def test_lost_slides_are_counted_at_the_step_that_lost_them(finished, stage):  # noqa: F811
    with Run.open(recipe_of(finished)) as run:
        gone = next(r.slide_id for r in run.slides.records if r.split == "test")
        run.states.update(gone, state="failed", stage=stage, reason="damaged: copy it again")
        if stage == "predict":
            for file in sorted((run.folder.scores / gone).rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
        report(run)
        html = run.folder.report.read_text()
    assert f"− 1 failed in stage {stage}: {gone}<" in html
    assert "damaged: copy it again" in html
    assert html.index("failed in stage") < html.index("measured (split test)")
