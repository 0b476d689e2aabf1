"""A whole step: section `compute` changes no weight beyond rounding, and memory grows with neither M nor B."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.cohort import PATCH_PX, outlines_of, textured_slide
from tests.training.test_loop import Recorder
from wsi_ips.annotations import Area
from wsi_ips.config import ComputeSection, PlannedTraining
from wsi_ips.labels import Target, Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.training import loss as training_loss
from wsi_ips.training.gradient import SavedBytes, uses_batch_statistics
from wsi_ips.training.loop import Trainer
from wsi_ips.training.loss import StepLoss, in_parts
from wsi_ips.training.settings import LabelledSlide, Listener, Settings
from wsi_ips.training.tile_truth import TileTruth, tile_truth

TASKS = (Task("label", ("0", "1", "2")),)
WARM_START, SELECTING = 1, 2
"""Epochs of the trainer below."""


def trainer(
    *,
    memory_size: int = 6,
    has_weights: bool = False,
    exploration: float = 0.6,
    listener: Listener | None = None,
    gradient: str = "auto",
    micro_batch: int = 64,
    **compute,
) -> Trainer:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=has_weights))
    settings = Settings(
        PlannedTraining(epochs=3, start_epochs=1, exploration=exploration, tile_loss=0.7, tile_dropout=0.1),
        ComputeSection(device="cpu", chunk_size=16, **compute),
        memory_size=memory_size,
        seed=3,
        gradient=gradient,
        micro_batch=micro_batch,
    )
    net = IpsNet(encoder, NetSettings(tasks=TASKS, heads=2, key_width=8, dropout=0.3))
    return Trainer(net, settings, listener=listener)


def slides(count: int) -> list[LabelledSlide]:
    """Slides, of which every second one has outlines of tiles of the second class."""
    found = [LabelledSlide(textured_slide(f"s{i}", label=i % 2, seed=i), (i % 3,)) for i in range(count)]
    areas = [outlines_of(seed=i, group="1") if i % 2 else None for i in range(count)]
    return [replace(one, truth=truth_of(one, outlines)) for one, outlines in zip(found, areas, strict=True)]


def truth_of(slide: LabelledSlide, areas: list[Area] | None) -> TileTruth | None:
    return tile_truth(slide.tiles.index, slide.targets, TASKS, areas, complete=True)


def step(learner: Trainer, batch: list[LabelledSlide], epoch: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step."""
    torch.manual_seed(7)
    optimiser = torch.optim.SGD(learner.net.parameters(), lr=0.0)
    loss, _ = learner.step.learn(batch, epoch, [torch.tensor([0.5, 1.0, 2.0])], optimiser)
    return loss, {name: p.grad for name, p in learner.net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("epoch", [WARM_START, SELECTING])
@pytest.mark.parametrize("micro_batch", [4, 5])
def test_one_pass_and_two_give_the_same_gradient(monkeypatch, epoch, micro_batch):
    """Dropout, tile loss, class weights, exploration and augmentation are on."""
    monkeypatch.setattr(training_loss, "ROWS_AT_A_TIME", 7)
    plain_loss, plain = step(trainer(gradient="plain"), slides(3), epoch)
    loss, found = step(trainer(gradient="two-pass", micro_batch=micro_batch), slides(3), epoch)
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        assert (found[name] - value).norm() < 1e-5 * value.norm().clamp_min(1e-6), name


def test_saved_bytes_of_a_step_are_those_of_a_micro_batch(monkeypatch):
    """What remains are tables of embeddings: a few D floats a winner, here 2 kB of the 300 kB of its activations."""
    monkeypatch.setattr(training_loss, "ROWS_AT_A_TIME", 8)

    def saved(gradient: str, *, memory_size: int, count: int) -> int:
        learner = trainer(gradient=gradient, micro_batch=4, memory_size=memory_size, exploration=0.0)
        with SavedBytes() as counted:
            step(learner, slides(count), SELECTING)
        return counted.peak

    few = saved("two-pass", memory_size=4, count=1)
    assert saved("two-pass", memory_size=24, count=1) < 1.05 * few
    assert saved("two-pass", memory_size=24, count=6) < 1.05 * few
    assert saved("plain", memory_size=24, count=6) > 10 * few


def test_an_epoch_says_so_when_it_learns_in_two_passes():
    listener = Recorder()
    learner = trainer(gpu_memory_gb=0.003, listener=listener)
    for epoch in (WARM_START, SELECTING, SELECTING):
        step(learner, slides(3), epoch)
    notes = listener.notes
    assert len(notes) == 2
    assert "64 patches at a time would need" in notes[0]
    assert "12 winners at once" in notes[1]
    assert "learning in two passes" in notes[1]


def test_pretrained_batch_norm_keeps_its_statistics_in_scan_and_learner():
    learner = trainer(has_weights=True, gradient="two-pass", micro_batch=4)
    rng = torch.Generator().manual_seed(1)
    for name, buffer in learner.net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=rng) + 0.5)
    before = {name: buffer.clone() for name, buffer in learner.net.named_buffers()}
    for epoch in (WARM_START, SELECTING):
        _, found = step(learner, slides(2), epoch)
        assert any("bn1.weight" in name for name in found)  # scale and shift are learned
    for name, buffer in learner.net.named_buffers():
        torch.testing.assert_close(buffer, before[name], rtol=0, atol=0)
    patches = torch.rand(3, 3, PATCH_PX, PATCH_PX)
    learned = learner.net.train().encoder
    assert not uses_batch_statistics(learned)
    together = learned(patches)
    torch.testing.assert_close(together, learner.net.eval().encoder(patches), rtol=0, atol=0)
    torch.testing.assert_close(together[:1], learner.net.train().encoder(patches[:1]), rtol=1e-5, atol=1e-5)


def test_in_parts_is_the_whole_sum_and_repeats_its_random_numbers(monkeypatch):
    monkeypatch.setattr(training_loss, "ROWS_AT_A_TIME", 4)
    rows, weights = torch.randn(10, 5, dtype=torch.float64), torch.rand(10, dtype=torch.float64)

    def part(rows: Tensor, weights: Tensor) -> Tensor:
        return (functional.dropout(rows, 0.5).pow(3).sum(1) * weights).sum()

    found = []
    for total in (in_parts, lambda p, r, w: sum(p(*some) for some in zip(r.split(4), w.split(4), strict=True))):
        leaf = rows.clone().requires_grad_()
        torch.manual_seed(2)
        loss = total(part, leaf, weights)
        loss.backward()
        found.append((loss.detach(), leaf.grad, torch.rand(1)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0)
    assert np.isfinite(float(found[0][0]))


def test_the_tile_loss_keeps_activations_of_one_part_only(monkeypatch):
    learner, width = trainer(), 64
    loss = StepLoss([None], known=torch.tensor([1]))

    def saved(tiles: int) -> int:
        embeddings = torch.randn(1, tiles, width, requires_grad=True)
        mask, truth = torch.ones(1, tiles, dtype=torch.bool), torch.tensor([1])
        with SavedBytes() as counted:
            loss.of_tiles(learner.net, [truth], embeddings, mask).backward()
        return counted.peak

    def floats_a_tile() -> float:
        return (saved(400) - saved(40)) / 360 / 4

    monkeypatch.setattr(training_loss, "ROWS_AT_A_TIME", 1000)
    assert floats_a_tile() > 8 * width
    monkeypatch.setattr(training_loss, "ROWS_AT_A_TIME", 20)
    assert floats_a_tile() < 1.2 * width  # the embeddings themselves


SEVERAL = (Task("grade", ("0", "1", "2")), Task("signs", ("a", "b"), "multi"))


def test_tasks_learn_together_each_from_what_is_known_of_it():
    """A slide of which a task knows nothing moves neither that task's query nor its head."""
    torch.manual_seed(0)
    learner = trainer(gradient="two-pass", micro_batch=4)
    learner.step.net = learner.net = IpsNet(
        learner.net.encoder, NetSettings(tasks=SEVERAL, heads=2, key_width=8, dropout=0.3)
    )
    tiles = [textured_slide(f"s{i}", label=i % 2, seed=i) for i in range(2)]
    weights = [torch.ones(3), torch.ones(2, 2)]

    def gradients(targets: list[tuple[Target, ...]]) -> dict[str, Tensor]:
        torch.manual_seed(7)
        batch = [LabelledSlide(*pair) for pair in zip(tiles, targets, strict=True)]
        loss, right = learner.step.learn(batch, SELECTING, weights, torch.optim.SGD(learner.net.parameters(), lr=0.0))
        assert np.isfinite(loss)
        assert 0 <= right <= 1
        return {"head": learner.net.head.weight.grad, "queries": learner.net.pooling.queries.grad}

    both = gradients([(2, (True, False)), (0, (False, False))])
    assert both["head"].abs().sum(1).min() > 0
    assert both["queries"].abs().sum(1).min() > 0
    grades = gradients([(2, None), (0, None)])
    assert not grades["head"][3:].any()
    assert not grades["queries"][1].any()
    assert grades["head"][:3].abs().sum() > 0
