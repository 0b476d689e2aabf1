"""A bundle keeps its calibration beside its card; one that does not fit the model is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from tests.model.test_checkpoint import CARD
from wsi_ips.errors import CheckpointError
from wsi_ips.evaluation.calibration import (
    CALIBRATION_NAME,
    Calibration,
    TaskCalibration,
    read_calibration,
    write_calibration,
)
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint import build_net, save_checkpoint
from wsi_ips.model.checkpoint_card import checkpoint_fingerprint, read_card, write_card

TASKS = (Task("label", ("normal", "tumor")), Task("grade", ("a", "b", "c")), Task("signs", ("x", "y"), "multi"))
FOUND = Calibration(
    (
        TaskCalibration("label", 1.7, (0.31,), 40),
        TaskCalibration("grade", 0.8, (), 30),
        TaskCalibration("signs", 1.0, (0.4, 0.5), 12, "threshold of `y` 0.5: too few validation slides"),
    )
)


def test_it_comes_back_and_is_the_default_where_there_is_none(tmp_path):
    assert read_calibration(tmp_path, TASKS, "f").tasks[0] == TaskCalibration(
        "label", 1.0, (0.5,), 0, "the model has no calibration: temperature 1, threshold 0.5"
    )
    assert [len(t.thresholds) for t in Calibration.default(TASKS).tasks] == [1, 0, 2]
    write_calibration(tmp_path, FOUND, "f")
    assert read_calibration(tmp_path, TASKS, "f") == FOUND


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 9}, "another version"),
        ({"checkpoint": "other"}, "other weights"),
        ({"tasks": []}, "damaged"),
        ({"tasks": [{"task": "label", "temperature": 0.0, "thresholds": [0.5]}]}, "damaged"),
        (
            {"tasks": [{**asdict(task), "decision": "oracle"} for task in FOUND.tasks]},
            "damaged .*decided by `oracle`",
        ),
        ("{", "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(tmp_path, change, says):
    write_calibration(tmp_path, FOUND, "f")
    path = tmp_path / CALIBRATION_NAME
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"{says}.*wsi-ips evaluate"):
        read_calibration(tmp_path, TASKS, "f")


def test_the_hash_is_that_of_what_it_does():
    noted = Calibration((replace(FOUND.tasks[0], note="n", slides=3), *FOUND.tasks[1:]))
    other = Calibration((replace(FOUND.tasks[0], temperature=1.6), *FOUND.tasks[1:]))
    by_tiles = Calibration((replace(FOUND.tasks[0], decision="tiles"), *FOUND.tasks[1:]))
    assert noted.hash == FOUND.hash != other.hash
    assert by_tiles.hash not in (FOUND.hash, other.hash)  # what was drawn with the one is not up to date with the other


def test_scores_stay_valid_whatever_the_card_says_for_people_and_however_it_is_calibrated(tmp_path):
    save_checkpoint(tmp_path, build_net(CARD), CARD)
    before = checkpoint_fingerprint(tmp_path)
    write_calibration(tmp_path, Calibration.default(CARD.tasks), before)
    write_card(tmp_path, replace(CARD, preparation={"tiles": {"mpp": 0.5}}, training={"slides": {}}))
    assert checkpoint_fingerprint(tmp_path) == before
    assert read_card(tmp_path).preparation == {"tiles": {"mpp": 0.5}}
    write_card(tmp_path, replace(CARD, fingerprint="another training"))
    assert checkpoint_fingerprint(tmp_path) != before


def test_thresholds_decide_the_answer():
    binary, several = TASKS[0], TASKS[2]
    assert binary.answer((0.6, 0.4)) == "normal"
    assert binary.answer((0.6, 0.4), (0.4,)) == "tumor"
    assert binary.answer((0.3, 0.7), (0.71,)) == "normal"
    assert several.answer((0.45, 0.45), (0.4, 0.5)) == "x"
    assert several.answer((0.45, 0.45)) == "none"
