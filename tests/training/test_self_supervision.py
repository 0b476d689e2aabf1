"""An encoder learns from tiles without labels, resumes anywhere, and says when it cannot learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.cohort import PATCH_PX, textured_slide
from wsi_ips.config import AugmentSection, ComputeSection
from wsi_ips.errors import DivergedError, RecipeError, TrainingError
from wsi_ips.geometry import Scale
from wsi_ips.model.checkpoint_card import EncoderSpec
from wsi_ips.model.encoder import Encoder, StoredTrunk
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.freezing import freeze
from wsi_ips.slides import ArrayReader
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.training import self_supervision
from wsi_ips.training.resume import StateFile, StopRequest
from wsi_ips.training.self_supervision import (
    EncoderListener,
    EncoderRecord,
    EncoderTrainer,
    Learner,
    SelfSupervision,
    spread,
    view_loss,
)

COMPUTE = ComputeSection(device="cpu", readers=2)
SMALL = SelfSupervision(5, 3, COMPUTE, groups=2, group_tiles=12)


class Killed(BaseException):
    """What no code expects."""


class Recorder(EncoderListener):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.records: list[EncoderRecord] = []
        self.steps = 0
        self.notes: list[str] = []

    def on_steps(self, count: int) -> None:
        self.steps += count

    def on_epoch(self, record: EncoderRecord) -> None:
        self.records.append(record)

    def on_resume(self, history) -> None:
        self.records.extend(history)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_supervision, "EPOCH_STEPS", 2)


def new_encoder(name: str = "resnet18-1") -> Encoder:
    torch.manual_seed(0)
    return build_encoder(encoder_spec(name, norm="auto", has_weights=False))


def slides(count: int = 3, *, label: int = 0) -> list[SlideTiles]:
    return [textured_slide(f"s{i}", label=label, seed=i) for i in range(count)]


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    for (name, tensor), other in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def coloured_slides(count: int) -> list[SlideTiles]:
    """Slides of 28 tiles, each of a colour and a texture of its own."""
    return [replace(slide, open=partial(coloured, seed)) for seed, slide in enumerate(slides(count))]


def coloured(seed: int) -> ArrayReader:
    rng = np.random.default_rng(seed)
    tiles = []
    for number in range(28):
        block = 2 ** (number % 4 + 1)
        noise = rng.uniform(-40, 40, (PATCH_PX // block,) * 2).repeat(block, 0).repeat(block, 1)
        tiles.append(rng.uniform(80, 215, 3) + noise[:, :, None])
    pixels = np.concatenate([np.concatenate(tiles[row : row + 7], axis=1) for row in range(0, 28, 7)])
    return ArrayReader([pixels.clip(0, 255).astype(np.uint8)], Scale(0.5, 0.5), name=f"s{seed}")


def fit(
    given: SelfSupervision = SMALL, *, path: Path | None = None, die_after: int | None = None
) -> tuple[Encoder, Recorder]:
    """Train on three slides; dies after so many steps of this call."""
    encoder, listener = new_encoder(), Recorder()
    trainer = EncoderTrainer(encoder, given, listener=listener)
    plain, done = trainer._learn, 0

    def learn(*arguments):
        nonlocal done
        if done == die_after:
            raise Killed
        done += 1
        return plain(*arguments)

    trainer._learn = learn
    trainer.fit(slides(), file=StateFile(path, "this", every_s=0) if path else None)
    return encoder, listener


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[tuple[Encoder, Recorder]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(self_supervision, "EPOCH_STEPS", 2)
        yield fit()


@pytest.mark.parametrize("died_after", range(5))
def test_killed_before_any_step_it_ends_with_the_very_weights(tmp_path, undisturbed, died_after):
    with pytest.raises(Killed):
        fit(path=tmp_path / "state", die_after=died_after)
    encoder, listener = fit(path=tmp_path / "state")
    assert_equal(encoder, undisturbed[0])
    assert [replace(r, seconds=0) for r in listener.records] == [replace(r, seconds=0) for r in undisturbed[1].records]


def test_a_finished_one_is_not_repeated(tmp_path, undisturbed):
    fit(path=tmp_path / "state")
    encoder, listener = fit(path=tmp_path / "state", die_after=0)
    assert_equal(encoder, undisturbed[0])
    assert (listener.steps, len(listener.records)) == (5, 3)


def test_epochs_are_reported_with_their_steps_and_the_encoder_is_ready_to_use(undisturbed):
    encoder, listener = undisturbed
    assert [(r.epoch, r.steps) for r in listener.records] == [(1, 2), (2, 4), (3, 5)]
    assert not encoder.training


@pytest.mark.parametrize("steps", [1, 2], ids=["within-an-epoch", "after-its-last-step"])
def test_asked_to_stop_it_saves_the_state_of_this_step(tmp_path, undisturbed, steps):
    stop, listener = StopRequest(), Recorder()
    trainer = EncoderTrainer(new_encoder(), SMALL, listener=listener)
    plain = trainer._learn

    def learn(*arguments):
        stop.asked = listener.steps == steps - 1
        return plain(*arguments)

    trainer._learn = learn
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(slides(), file=StateFile(tmp_path / "state", "this", every_s=1e9), stop=stop)
    assert listener.steps == steps
    assert_equal(fit(path=tmp_path / "state")[0], undisturbed[0])


def test_patches_a_few_at_a_time_give_the_same_weights(undisturbed):
    """Where activations do not fit into the budget, the gradient is taken in two passes."""
    compute = COMPUTE.model_copy(update={"gpu_memory_gb": 1e-6})
    found, _ = fit(replace(SMALL, compute=compute, steps=2, micro_batch=5))
    expected, _ = fit(replace(SMALL, steps=2))
    for tensor, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-3, atol=2e-3)  # AdamW's first steps are of size 0.001


def test_views_of_a_tile_find_each_other_more_and_more(monkeypatch):
    monkeypatch.setattr(self_supervision, "EPOCH_STEPS", 10)
    listener = Recorder()
    given = replace(SMALL, steps=40, groups=1, group_tiles=32, augment=AugmentSection(hed=0.4, saturation=0.5))
    EncoderTrainer(new_encoder(), given, listener=listener).fit(coloured_slides(8))
    losses = [record.loss for record in listener.records]
    assert losses[-1] < 0.9 * losses[0]
    assert losses[-1] < 0.75 * math.log(63)  # that of a guess among the 63 other views
    assert min(record.spread for record in listener.records) > 0.5


def test_a_loss_that_only_asks_for_agreement_collapses_and_is_stopped(monkeypatch):
    monkeypatch.setattr(self_supervision, "view_loss", lambda first, second: (first - second).square().mean())
    monkeypatch.setattr(Learner, "build_head", lambda self: torch.nn.Linear(self.encoder.width, 8))
    trainer = EncoderTrainer(new_encoder(), replace(SMALL, steps=60, learning_rate=0.03))
    with pytest.raises(TrainingError, match=r"maps all tiles to nearly the same.*another `training.start`"):
        trainer.fit(slides())


def test_tiles_that_are_all_alike_teach_nothing_and_that_is_said():
    slide = textured_slide("s", label=0, seed=0)
    white = np.full((4 * PATCH_PX, 7 * PATCH_PX, 3), 240, np.uint8)
    slide = replace(slide, open=lambda: ArrayReader([white], Scale(0.5, 0.5), name="s"))
    listener = Recorder()
    EncoderTrainer(new_encoder(), replace(SMALL, augment=AugmentSection.nothing()), listener=listener).fit([slide])
    assert ["learned next to nothing" in note for note in listener.notes] == [True]


def test_a_loss_that_is_not_finite_is_told(monkeypatch):
    monkeypatch.setattr(self_supervision, "view_loss", lambda first, second: (first - second).sum() * float("nan"))
    with pytest.raises(DivergedError, match="diverged in step 1: the loss is nan"):
        EncoderTrainer(new_encoder(), SMALL).fit(slides())


def test_fewer_tiles_than_a_group_are_refused():
    with pytest.raises(TrainingError, match="28 tiles in 1 slides are fewer than the 64"):
        EncoderTrainer(new_encoder(), replace(SMALL, group_tiles=64)).fit(slides(1))


def test_a_frozen_encoder_and_imported_features_are_refused():
    encoder = new_encoder()
    freeze(encoder, "all")
    with pytest.raises(RecipeError, match=r"`model.freeze`: self-supervision trains the encoder"):
        EncoderTrainer(encoder, SMALL)
    features = Encoder(StoredTrunk(), spec=EncoderSpec("imported:x", "batch", True, features=8), width=8)
    with pytest.raises(RecipeError, match="the encoder of imported features is not here"):
        EncoderTrainer(features, SMALL)


def test_frozen_stages_stay_as_they_are():
    encoder, before = new_encoder("resnet18-2"), new_encoder("resnet18-2")
    freeze(encoder, 1)
    EncoderTrainer(encoder, replace(SMALL, steps=1)).fit(slides())
    assert_equal(encoder.trunk[4], before.trunk[4])
    shortcut, old = (part.trunk[5][0].downsample[0].weight for part in (encoder, before))
    assert not torch.equal(shortcut, old)


def test_spread_is_0_for_equal_and_about_1_for_random_projections():
    assert spread(torch.ones(50, 16)) == pytest.approx(0, abs=1e-6)
    assert spread(torch.randn(500, 16, generator=torch.Generator().manual_seed(0))) == pytest.approx(1, abs=0.05)


def test_the_loss_is_the_published_one():
    """Equation 1 of Chen et al., 2020, pair by pair."""
    first, second = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    views, total = torch.cat([first, second]), 0.0
    for i in range(10):
        similar = [torch.cosine_similarity(views[i], views[k], dim=0) / self_supervision.TEMPERATURE for k in range(10)]
        others = sum(similar[k].exp() for k in range(10) if k != i)
        total = total - (similar[(i + 5) % 10].exp() / others).log()
    torch.testing.assert_close(view_loss(first, second), total / 10)
