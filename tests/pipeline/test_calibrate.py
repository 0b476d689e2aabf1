"""A run calibrates its model, freezes the calibration in the bundle, and everything after uses it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from tests.faults.slides import recipe_of, write_cohort, write_good
from tests.pipeline.bundles import write_bundle
from wsi_ips.evaluation.calibration import CALIBRATION_NAME
from wsi_ips.inference.slide_scores import by_tiles, read_scores, write_scores
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import CARD_NAME
from wsi_ips.pipeline import Run
from wsi_ips.pipeline.evaluate_run import evaluate_run
from wsi_ips.pipeline.progress import Silent
from wsi_ips.pipeline.stages import predict, tile

BINARY = Task("label", ("normal", "tumor"))


class Told(Silent):
    """What a run says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """24 validation and 4 test slides, predicted by a model of the run's own, that turns out to be too sure."""
    folder = tmp_path_factory.mktemp("calibrated")
    write_cohort(folder, write_good(folder, 28), workers=0)
    write_bundle(folder / "out" / "model")
    table = pd.read_csv(folder / "manifest.csv")
    table["split"] = ["val"] * 24 + ["test"] * 4
    table.to_csv(folder / "manifest.csv", index=False)
    with Run.open(recipe_of(folder)) as run:
        tile(run)
        predict(run)
        too_sure = expit(np.random.default_rng(0).permutation(np.linspace(-9, 9, len(run.slides.records)))).tolist()
        raw = dict(zip((r.slide_id for r in run.slides.records), too_sure, strict=True))
        for name, chance in raw.items():  # an untrained network says the same of all slides
            scores = read_scores(run.folder.scores, name)
            write_scores(run.folder.scores, replace(scores, probabilities=((1 - chance, chance),)))
    assert (
        "no validation slides"
        in json.loads((folder / "out" / "model" / CALIBRATION_NAME).read_text())["tasks"][0]["note"]
    )
    ranked = sorted(raw, key=raw.__getitem__)
    labels = {name: "tumor" if 2 * i >= len(ranked) else "normal" for i, name in enumerate(ranked)}
    validation = [name for name in ranked if table.set_index("slide_id").loc[name, "split"] == "val"]
    for name in (validation[2], validation[5], validation[-4]):  # the model is sure and wrong
        labels[name] = "normal" if labels[name] == "tumor" else "tumor"
    table["label"] = table["slide_id"].map(labels)
    table.to_csv(folder / "manifest.csv", index=False)
    return folder


def test_a_run_freezes_them_in_its_bundle_and_everything_uses_them(run_folder):
    with Run.open(recipe_of(run_folder)) as run:
        worked = predict(run)
        found = run.predictions.calibration().tasks[0]
        evaluation = evaluate_run(run.predictions, split="test")
        table = pd.read_csv(run.folder.predictions)
        stored = {
            r.slide_id: read_scores(run.folder.scores, r.slide_id).probabilities[0][-1] for r in run.slides.records
        }
    assert worked == 0  # scores do not depend on labels, nor on a calibration
    assert found.slides == 24
    assert 1.1 < found.temperature < 19
    assert found.note == ""
    raw = table["slide_id"].map(stored)
    np.testing.assert_allclose(table["raw_probability_tumor"], raw, atol=1e-6)
    scaled = expit(logit(raw) / found.temperature)
    np.testing.assert_allclose(table["probability_tumor"], scaled, atol=1e-5)
    assert (table["predicted"] == np.where(scaled >= found.thresholds[0], "tumor", "normal")).all()
    assert evaluation.slides.threshold == found.thresholds[0]
    assert evaluation.slides.threshold_from == "validation"
    assert evaluation.slides.temperature == found.temperature
    called = table[(table["split"] == "test") & (table["predicted"] == "tumor")]
    confusion = evaluation.slides.confusion
    assert confusion.true_positive + confusion.false_positive == len(called)
    given = evaluate_run(Run.open(recipe_of(run_folder)).predictions, threshold=0.9).slides
    assert (given.threshold, given.threshold_from) == (0.9, "given")


def test_it_is_made_again_only_when_it_changes(run_folder):
    path = run_folder / "out" / "model" / CALIBRATION_NAME
    with Run.open(recipe_of(run_folder)) as run:
        predict(run)
        before = path.stat().st_mtime_ns
        predict(run)
        evaluate_run(run.predictions)
        assert path.stat().st_mtime_ns == before
        right = path.read_text()
        path.write_text(right.replace('"checkpoint": "', '"checkpoint": "x'))
        predict(run)
        assert path.read_text() == right


def test_the_decision_changes_without_training_or_scanning_anew_and_the_bundle_keeps_it(run_folder, tmp_path):
    kept = (run_folder / "out" / "model" / CALIBRATION_NAME).read_bytes()
    with Run.open(recipe_of(run_folder, predict__decision="tiles")) as run:
        assert predict(run) == 0
        calibration = run.predictions.calibration()
        scores = {r.slide_id: read_scores(run.folder.scores, r.slide_id) for r in run.slides.records}
        table = pd.read_csv(run.folder.predictions).set_index("slide_id")
        evaluation = evaluate_run(run.predictions, split="test")
    assert calibration.tasks[0].decision == "tiles"
    for name, entry in scores.items():
        decided = by_tiles(BINARY, entry.tile_probability)
        assert table.loc[name, "raw_probability_tumor"] == pytest.approx(decided[1], abs=1e-6)
        assert replace(entry, calibration=calibration).verdicts[0].raw == decided
    pooled = np.array([entry.probabilities[0][1] for entry in scores.values()])
    assert np.abs(table.loc[list(scores), "raw_probability_tumor"] - pooled).max() > 0.3
    assert not any("predict.decision" in note for note in evaluation.notes)
    bundle = run_folder / "out" / "model"
    other = recipe_of(run_folder, predict__checkpoint=str(bundle), output=str(tmp_path / "other"))
    with Run.open(other) as run:
        tile(run, ["good_00"])
        predict(run, ["good_00"])
        elsewhere = pd.read_csv(run.folder.predictions).set_index("slide_id")
    assert elsewhere.loc["good_00", "raw_probability_tumor"] == pytest.approx(
        by_tiles(BINARY, scores["good_00"].tile_probability)[1], abs=1e-5
    )
    with Run.open(recipe_of(run_folder)) as run:
        predict(run)
    assert (run_folder / "out" / "model" / CALIBRATION_NAME).read_bytes() == kept
    asked = recipe_of(
        run_folder, predict__checkpoint=str(bundle), predict__decision="tiles", output=str(tmp_path / "b")
    )
    said = Told()
    with Run.open(asked, said) as run:
        tile(run, ["good_00"])
        predict(run, ["good_00"])
        assert run.predictions.calibration().tasks[0].decision == "pooled"
    assert any("key `predict.decision`" in note and "`pooled`" in note for note in said.notes)


def test_a_model_from_elsewhere_keeps_its_own(run_folder, tmp_path):
    with Run.open(recipe_of(run_folder)) as run:
        predict(run)
        frozen = run.predictions.calibration()
    bundle = run_folder / "out" / "model"
    before = (bundle / CALIBRATION_NAME).read_bytes(), (bundle / CARD_NAME).read_bytes()
    other = recipe_of(run_folder, predict__checkpoint=str(bundle), output=str(tmp_path / "other"))
    with Run.open(other) as run:
        tile(run, ["good_00", "good_01"])
        predict(run, ["good_00", "good_01"])
        assert run.predictions.calibration() == frozen
    assert before == ((bundle / CALIBRATION_NAME).read_bytes(), (bundle / CARD_NAME).read_bytes())
