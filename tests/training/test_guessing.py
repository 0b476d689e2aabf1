"""A training that has learned nothing says so: early on, when it ends, and only then."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wsi_ips.config import ModelSection, TrainingSection
from wsi_ips.training.guessing import early_warning, final_warning, warning_of_file

TRAINING, MODEL = TrainingSection(), ModelSection()
GUESS = 1.386


def epoch(loss: float, done: float | None) -> dict[str, Any]:
    return {"loss": loss, "guess_loss": GUESS, "selection_done": done}


def told(losses: list[float], *, start: int, epochs: int) -> list[int]:
    """Epochs (from 1) after which the early warning comes; the first ``start`` are without selection."""
    done = [None if n <= start else (n - start) / (epochs - start) for n in range(1, len(losses) + 1)]
    history = [epoch(*pair) for pair in zip(losses, done, strict=True)]
    return [n for n in range(1, len(history) + 1) if early_warning(history[:n], TRAINING, MODEL)]


@pytest.mark.parametrize(
    ("losses", "start", "epochs", "expected"),
    [
        ([GUESS] * 50, 10, 50, [14]),  # a tenth of forty epochs
        ([GUESS] * 6, 2, 6, [4]),  # not after the first epoch, whose mean includes its beginning
        ([GUESS] * 13 + [0.9] * 37, 10, 50, []),  # it learned in time
        ([GUESS] * 13 + [1.40] + [0.9] * 36, 10, 50, [14]),  # it learned afterwards
        ([GUESS] * 10, 10, 50, []),  # nothing was selected yet
        ([GUESS] * 2, 0, 1, [2]),
    ],
)
def test_one_line_comes_after_a_tenth_of_the_steps_with_selection(losses, start, epochs, expected):
    assert told(losses, start=start, epochs=epochs) == expected


def test_the_line_gives_both_losses_and_what_to_try():
    text = early_warning([epoch(1.39, 0.1), epoch(1.38, 0.2)], TRAINING, MODEL)
    assert "after 20 % of the steps with selection" in text
    assert "1.380; guessing: 1.386" in text
    assert "`model.pretrained: true`" in text
    assert "`training.start`" in text
    assert "pretrained" not in early_warning([epoch(1.4, 0.1)] * 2, TRAINING, ModelSection(pretrained=True))


@pytest.mark.parametrize(("last", "warns"), [(GUESS, True), (5.0, True), (1.33, True), (1.30, False), (0.1, False)])
def test_a_training_ends_with_a_warning_if_its_last_epoch_guesses(tmp_path, last, warns):
    history = [epoch(GUESS, None), epoch(0.1, 0.5), epoch(last, 1.0)]
    text = final_warning(history, TRAINING, MODEL)
    assert bool(text) == warns
    assert not warns or "has learned nothing" in text
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in history))
    assert warning_of_file(path, TRAINING, MODEL) == text


def test_trainings_of_earlier_versions_and_missing_files_give_no_warning(tmp_path):
    assert final_warning([{"loss": 1.4}], TRAINING, MODEL) == ""
    assert final_warning([], TRAINING, MODEL) == ""
    assert warning_of_file(tmp_path / "metrics.jsonl", TRAINING, MODEL) == ""
