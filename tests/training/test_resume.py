"""A training that was stopped anywhere ends as one that was not."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.training.test_loop import COMPUTE, Recorder, cohort, trainer
from wsi_ips.config import ComputeSection
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.training.resume import StateFile, StopRequest
from wsi_ips.training.tracking import EpochRecord

SETTINGS = {"epochs": 4, "start_epochs": 2, "exploration": 0.5, "tile_dropout": 0.2}
STEPS = 6
"""One in each epoch of the start; then two: of four slides three at a time."""


EVERYTHING = {
    "epochs": 9,
    "start_epochs": 1,
    "weight_average": 0.8,
    "patience": 2,
    "select": "auc",
    "balance": "sampling",
    "augment": {"hed": 0.1, "saturation": 0.1},
    "tile_dropout": 0.2,
}
IN_PARTS = COMPUTE.model_copy(update={"slides_at_once": 2, "gradient_precision": "bf16"})


class Killed(BaseException):
    """What no code expects."""


def net_with_dropout() -> IpsNet:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    return IpsNet(encoder, NetSettings(heads=2, key_width=8, dropout=0.3))


def fit(
    path: Path | None,
    *,
    die_after: int | None = None,
    every_s: float = 0.0,
    settings: Mapping[str, object] = SETTINGS,
    compute: ComputeSection = COMPUTE,
    val_is_wrong: bool = False,
) -> tuple[IpsNet, list[EpochRecord]]:
    """Train; dies after so many steps of this call. The network to keep, and the figures."""
    net, listener = net_with_dropout(), Recorder()
    loop = trainer(net, compute, listener, **settings)
    done = 0
    plain = loop.step.learn

    def step(*arguments):
        nonlocal done
        if done == die_after:
            raise Killed
        done += 1
        return plain(*arguments)

    loop.step.learn = step
    state = StateFile(path, "this", every_s=every_s) if path else None
    torch.manual_seed(11)
    val = [replace(s, targets=(s.targets[0] ^ val_is_wrong,)) for s in cohort(2)]
    loop.fit(cohort(4), val, file=state)
    return loop.result, listener.records


@pytest.fixture(scope="module")
def undisturbed() -> tuple[IpsNet, list[EpochRecord]]:
    return fit(None)


def assert_same(found: tuple[IpsNet, list[EpochRecord]], expected: tuple[IpsNet, list[EpochRecord]]) -> None:
    for (name, tensor), other in zip(found[0].state_dict().items(), expected[0].state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    ours, theirs = ([replace(record, seconds=0.0, cost=None) for record in records] for _, records in (found, expected))
    assert ours == theirs


@pytest.mark.parametrize("died_after", range(STEPS))
def test_killed_before_any_step_it_ends_with_the_very_weights(tmp_path, undisturbed, died_after):
    with pytest.raises(Killed):
        fit(tmp_path / "state", die_after=died_after)
    assert_same(fit(tmp_path / "state"), undisturbed)


def test_killed_again_and_again_with_saves_now_and_then(tmp_path, undisturbed, monkeypatch):
    """Only every third save is written, so steps are lost and done again."""
    count = 0

    def due(self: StateFile) -> bool:
        nonlocal count
        count += 1
        return count % 3 == 0

    monkeypatch.setattr(StateFile, "is_due", property(due))
    deaths = 0
    while True:
        try:
            found = fit(tmp_path / "state", die_after=3)
            break
        except Killed:
            deaths += 1
    assert deaths >= 2
    assert_same(found, undisturbed)


def test_killed_at_random_with_average_patience_accumulation_and_balanced_visits(tmp_path):
    """The average, its count, the best tiles of the last visit and the epochs without progress are in the state too."""
    # The validation slides have each other's label, so what is learned makes them worse, and patience runs out.
    options = {"settings": EVERYTHING, "compute": IN_PARTS, "val_is_wrong": True}
    expected = fit(None, **options)
    records = expected[1]
    assert 3 <= len(records) < EVERYTHING["epochs"]  # it stopped early
    assert records[-1].selection_overlap is not None
    moments, deaths = random.Random(5), 0
    while True:
        try:
            # The last saved step may be any of those before: every save is written or none for a while.
            how_often = moments.choice([0.0, 0.0, 1e9])
            found = fit(tmp_path / "state", die_after=moments.randint(1, 5), every_s=how_often, **options)
            break
        except Killed:
            deaths += 1
    assert deaths >= 2
    assert_same(found, expected)


def test_the_state_of_another_training_or_a_damaged_one_is_not_used(tmp_path, undisturbed):
    with pytest.raises(Killed):
        fit(tmp_path / "state", die_after=5)
    assert StateFile(tmp_path / "state", "another").read() is None
    assert StateFile(tmp_path / "none", "this").read() is None
    data = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(data[: len(data) // 2])
    assert StateFile(tmp_path / "state", "this").read() is None
    assert_same(fit(tmp_path / "state"), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_saves(tmp_path, undisturbed, number):
    net, stop, steps = net_with_dropout(), StopRequest(), 0
    loop = trainer(net, **SETTINGS)

    def on_slides(count: int) -> None:
        nonlocal steps
        steps += bool(count)
        if steps == 3:
            os.kill(os.getpid(), number)

    loop.listener.on_slides = on_slides
    state = StateFile(tmp_path / "state", "this", every_s=1e9)
    torch.manual_seed(11)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop.on_signals():
        loop.fit(cohort(4), cohort(2), file=state, stop=stop)
    assert signal.getsignal(number) is before
    assert steps == 3
    with safe_open(tmp_path / "state", framework="pt") as file:
        assert '"total": 3' in file.metadata()["counters"]
    assert_same(fit(tmp_path / "state"), undisturbed)


def test_a_second_signal_stops_at_once():
    stop = StopRequest()
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
