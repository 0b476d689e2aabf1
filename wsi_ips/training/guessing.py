"""Whether a training has learned more than how frequent the classes are: no torch, figures of epochs in, words out.

A network that always gives the same answer reaches the loss of guessing: ln 2 for two balanced classes, times 1 plus
the weight of the tile loss. Each epoch records it for the slides and class weights of that epoch
(``EpochRecord.guess_loss``). A training that starts badly stays there, for any number of epochs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_ips.config import ModelSection, TrainingSection
from wsi_ips.registry import registry

STILL_GUESSING = 0.95  # times the loss of guessing: a loss below it counts as having learned something
EARLY = 0.1  # share of the steps with selection after which an epoch is judged for the first time
LEAST_EPOCHS = 2  # with selection; the mean of the first one includes its own beginning
Figures = Mapping[str, Any]  # of an epoch, as in ``metrics.jsonl``


def is_guessing(epoch: Figures) -> bool:
    """Return whether the training loss of an epoch is no better than that of guessing; False where not recorded."""
    guess = epoch.get("guess_loss")
    return guess is not None and float(epoch["loss"]) >= STILL_GUESSING * float(guess)


def early_warning(history: Sequence[Figures], training: TrainingSection, model: ModelSection) -> str:
    """Return a warning if the last epoch is the first one to be judged and the network still guesses; else nothing."""
    selecting = [epoch for epoch in history if epoch.get("selection_done")]
    judged = [e for e in selecting[LEAST_EPOCHS - 1 :] if e["selection_done"] >= EARLY]
    if len(judged) != 1 or judged[0] is not history[-1] or not is_guessing(judged[0]):
        return ""
    share = f"{judged[0]['selection_done']:.0%}".replace("%", " %")
    return (
        f"after {share} of the steps with selection the loss is still that of guessing ({_losses(judged[0])}); if it "
        f"stays there, {_advice(training, model)}"
    )


def final_warning(history: Sequence[Figures], training: TrainingSection, model: ModelSection) -> str:
    """Return a warning if a finished training ends with the loss of guessing; else nothing."""
    if not history or not is_guessing(history[-1]):
        return ""
    return (
        f"the training has learned nothing: it ends with the loss of guessing ({_losses(history[-1])}), so do not use "
        f"its predictions; {_advice(training, model)}"
    )


def warning_of_file(metrics: Path, training: TrainingSection, model: ModelSection) -> str:
    """Return the :func:`final_warning` of the training in ``metrics.jsonl``; nothing where it cannot be read."""
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
        return final_warning([json.loads(line) for line in lines if line.strip()], training, model)
    except (OSError, ValueError):
        return ""


def _losses(epoch: Figures) -> str:
    return f"{epoch['loss']:.3f}; guessing: {epoch['guess_loss']:.3f}"


def _advice(training: TrainingSection, model: ModelSection) -> str:
    untried = [name for name in registry("starts") if name not in (training.start, "auto", "none")]
    given = model.pretrained or model.weights is not None or model.start is not None
    ways = [
        *([] if given else ["published weights of the encoder (`model.pretrained: true`, or `model.weights`)"]),
        *([f"another `training.start` ({', '.join(untried)})"] if untried else []),
        "more epochs",
    ]
    return f"try {', '.join(ways[:-1])} or {ways[-1]}, and check that the labels belong to these slides"
