"""The loop learns, repeats itself, and stops with advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.cohort import PATCH_PX, textured_slide
from wsi_ips.config import AugmentSection, ComputeSection, PlannedTraining
from wsi_ips.errors import TrainingError
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.scanning import ScanOptions, Winners, plain_patches, scan_slides, slide_logits
from wsi_ips.tiles.stream import read_tiles
from wsi_ips.training.loop import Trainer, warmup_cosine
from wsi_ips.training.loss import StepLoss, class_weights, selection_weights
from wsi_ips.training.settings import LabelledSlide, Listener, Settings
from wsi_ips.training.tracking import EpochRecord

COMPUTE = ComputeSection(device="cpu", readers=2, chunk_size=7)


class Recorder(Listener):
    """Keeps what it hears; ``then`` is called after each epoch."""

    def __init__(self, then: Callable[[EpochRecord], object] = lambda _: None) -> None:
        self.records: list[EpochRecord] = []
        self.notes: list[str] = []
        self.then = then

    def on_epoch(self, record: EpochRecord, net: IpsNet) -> None:
        self.records.append(record)
        self.then(record)

    def on_resume(self, history: Sequence[EpochRecord]) -> None:
        self.records.extend(history)

    def note(self, text: str) -> None:
        self.notes.append(text)


def small_net() -> IpsNet:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    return IpsNet(encoder, NetSettings(heads=2, key_width=8, dropout=0.0))


def cohort(count: int) -> list[LabelledSlide]:
    return [LabelledSlide(textured_slide(f"s{i}", label=i % 2, seed=i), (i % 2,)) for i in range(count)]


def trainer(net: IpsNet, compute: ComputeSection = COMPUTE, listener: Listener | None = None, **given: Any) -> Trainer:
    """A trainer for small slides; ``given`` are keys of `training`, ``gradient`` and ``micro_batch``."""
    inner = {name: given.pop(name) for name in ("gradient", "micro_batch") if name in given}
    defaults = {"epochs": 2, "batch_slides": 3, "learning_rate": 1e-3, "warmup_steps": 0, "start_epochs": 0}
    settings = Settings(PlannedTraining(**(defaults | given)), compute, memory_size=5, seed=3, **inner)
    return Trainer(net, settings, listener=listener)


def test_learns_to_tell_slides_apart_by_a_few_tiles():
    net, listener = small_net(), Recorder()
    light = AugmentSection(hed=0.05, brightness=0.0, saturation=0.0)  # eight slides, a hundred steps
    trainer(net, listener=listener, epochs=14, start_epochs=7, augment=light).fit(cohort(8), [])
    records = listener.records
    assert records[-1].loss < 0.5 * records[0].loss
    prepare = plain_patches(torch.device("cpu"))
    for slide in [LabelledSlide(textured_slide("new0", label=0, seed=90), (0,)), *cohort(2)[1:]]:
        kept = scan_slides(net, [slide.tiles], prepare, ScanOptions(5, COMPUTE))
        assert int(slide_logits(net, [slide.tiles], kept, prepare)[0].argmax()) == slide.targets[0]


def test_the_same_seed_gives_the_same_weights():
    nets = [small_net(), small_net()]
    for net in nets:
        trainer(net, tile_dropout=0.3).fit(cohort(4), [])
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_result_of_a_slide_does_not_depend_on_company_or_chunk_size():
    net, slides = small_net(), cohort(3)
    prepare = plain_patches(torch.device("cpu"))
    requests = [slide.tiles.at_slot(i) for i, slide in enumerate(slides)]
    together = scan_slides(net, requests, prepare, ScanOptions(5, COMPUTE))
    probabilities = net.probabilities(slide_logits(net, requests, together, prepare))
    for i, slide in enumerate(slides):
        other = COMPUTE.model_copy(update={"chunk_size": 1000})
        alone = scan_slides(net, [slide.tiles], prepare, ScanOptions(5, other))
        assert alone[0].tiles.tolist() == together[i].tiles.tolist()
        found = net.probabilities(slide_logits(net, [slide.tiles], alone, prepare))[0]
        torch.testing.assert_close(found, probabilities[i], rtol=1e-5, atol=1e-5)


def test_winners_are_embedded_with_gradient_and_a_mask_for_short_slides():
    net = small_net()
    short = textured_slide("short", label=0, seed=5)
    requests = [short.only(np.array([2, 4], np.int32)), textured_slide("long", label=1, seed=6).at_slot(1)]
    prepare = plain_patches(torch.device("cpu"))
    kept = scan_slides(net, requests, prepare, ScanOptions(5, COMPUTE))
    winners = Winners.of(net, requests, kept)
    embeddings, mask = winners.padded(net.encoder(winners.patches(0, len(winners), prepare)))
    assert mask.sum(1).tolist() == [2, 5]
    assert embeddings.requires_grad
    assert sorted(kept[0].tiles.tolist()) == [2, 4]
    assert not embeddings[0, 2:].any()


def test_tile_dropout_draws_other_tiles_each_epoch():
    slide = cohort(1)[0]
    loop = trainer(small_net(), tile_dropout=0.5)
    first, second = (loop.step.choice._request(0, slide, epoch).tiles for epoch in (1, 2))
    assert len(first) == len(second) == round(len(slide.tiles.index) / 2)
    assert first.tolist() != second.tolist()
    assert first.tolist() == loop.step.choice._request(0, slide, 1).tiles.tolist()


def test_one_class_only_is_refused_with_the_columns_to_check():
    slides = [replace(slide, targets=(1,)) for slide in cohort(3)]
    with pytest.raises(TrainingError, match=r"`label`.*all alike \(normal 0, tumor 3\).*`split`"):
        trainer(small_net()).fit(slides, [])


def test_a_loss_that_is_not_finite_stops_with_advice():
    net = small_net()
    with torch.no_grad():
        net.head.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match="learning_rate"):
        trainer(net).fit(cohort(2), [])


def test_validation_loss_is_that_of_the_whole_slide():
    net, slides = small_net(), cohort(2)
    prepare = plain_patches(torch.device("cpu"))
    expected = []
    for slide in slides:
        kept = scan_slides(net, [slide.tiles], prepare, ScanOptions(5, COMPUTE))
        probability = net.probabilities(slide_logits(net, [slide.tiles], kept, prepare))[0, slide.targets[0]]
        expected.append(-math.log(float(probability)))
    assert trainer(net)._validate(slides).loss == pytest.approx(np.mean(expected), rel=1e-5)


def test_class_weights_balance_classes_and_average_to_one():
    weights = class_weights(torch.tensor([0, 0, 0, 1]), Task("label", ("a", "b")), balanced=True)
    assert (weights[0] * 3).item() == pytest.approx(weights[1].item())
    assert (weights[0] * 3 + weights[1]).item() / 4 == pytest.approx(1)


def test_schedule_warms_up_then_falls_to_a_thousandth():
    rates = [warmup_cosine(step, warmup=10, total=100) for step in range(100)]
    assert rates[9] == 1
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[10] < 1
    assert rates[99] == pytest.approx(0.001)


def test_selection_weights_sum_to_one_per_slide_and_skip_padding():
    logits = torch.randn(2, 4, 1, 3)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    weights = selection_weights(logits, mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 1))
    assert weights[0, 2:, 0].tolist() == [0, 0]


def test_warm_start_draws_random_tiles_and_does_not_scan(monkeypatch):
    monkeypatch.setattr("wsi_ips.training.tile_choice.scan_slides", lambda *_, **__: pytest.fail("scanned"))
    loop, slides = trainer(small_net(), start_epochs=2), cohort(1)
    first, second = (loop.step.choice.kept(loop.net, slides, epoch, {})[0] for epoch in (1, 2))
    assert len(first.tiles) == 4
    assert first.tiles.tolist() != second.tiles.tolist()
    assert first.pixels.shape == (4, PATCH_PX, PATCH_PX, 3)


def test_exploration_falls_to_nothing_at_the_last_epoch():
    net, slide = small_net(), cohort(1)[0]
    loop = trainer(net, epochs=5, start_epochs=0, exploration=0.8)
    prepare = plain_patches(torch.device("cpu"))
    best = scan_slides(net, [slide.tiles], prepare, ScanOptions(5, COMPUTE))[0]
    kept = [loop.step.choice._explored(slide, best, epoch) for epoch in range(1, 6)]
    shared = [len(np.intersect1d(k.tiles, best.tiles)) for k in kept]
    assert shared == [1, 2, 3, 4, 5]
    for entry in kept:
        assert len(np.unique(entry.tiles)) == 5
        pixels = read_tiles(slide.tiles.only(entry.tiles.astype(np.int32)))
        np.testing.assert_array_equal(entry.pixels, pixels)


def test_the_tile_loss_blames_only_attended_tiles_of_positive_slides():
    net = small_net().eval()
    embeddings = torch.randn(2, 3, net.encoder.width)
    mask = torch.ones(2, 3, dtype=torch.bool)
    weights = selection_weights(net.pooling.logits(embeddings), mask)[:, :, 0]
    alone = net.head(net.pooling.alone(embeddings.flatten(0, 1))[:, 0]).log_softmax(1)
    expected = -(alone[:3, 0].mean() + (alone[3:, 1] * weights[1]).sum()) / 2
    loss = StepLoss([None], known=torch.tensor([2]))
    found = loss.of_tiles(net, [torch.tensor([0, 1])], embeddings, mask)
    torch.testing.assert_close(found, expected)


def test_without_a_background_class_tiles_of_every_slide_count_by_attention():
    net = small_net().eval()
    net.tasks = (Task("label", ("a", "b")),)
    embeddings, mask = torch.randn(2, 3, net.encoder.width), torch.ones(2, 3, dtype=torch.bool)
    weights = selection_weights(net.pooling.logits(embeddings), mask)[:, :, 0]  # (B, K)
    alone = net.head(net.pooling.alone(embeddings.flatten(0, 1))[:, 0]).log_softmax(1).reshape(2, 3, 2)
    expected = -((alone[0, :, 0] * weights[0]).sum() + (alone[1, :, 1] * weights[1]).sum()) / 2
    loss = StepLoss([None], known=torch.tensor([2]))
    torch.testing.assert_close(loss.of_tiles(net, [torch.tensor([0, 1])], embeddings, mask), expected)


@pytest.mark.parametrize("micro_batch", [1, 3, 50])
def test_training_in_two_passes_is_training(micro_batch):
    """Same winners, same dropout, same updates: the weights after an epoch agree to float32."""
    nets = []
    for gradient in ("plain", "two-pass"):
        net = small_net()
        torch.manual_seed(9)
        trainer(net, epochs=2, gradient=gradient, micro_batch=micro_batch).fit(cohort(4), [])
        nets.append(net)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_tiles_that_start_the_encoder_keep_to_the_chunk_limit():
    net, sizes = small_net(), []
    net.encoder.trunk.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    trainer(net)._standardise_embeddings(cohort(4))
    assert sum(sizes) == 4 * 28
    assert max(sizes) == COMPUTE.chunk_size
    whole = small_net()
    pixels = np.concatenate([read_tiles(slide.tiles) for slide in cohort(4)])
    whole.encoder.eval().start(to_float(torch.from_numpy(pixels)))
    torch.testing.assert_close(net.encoder.standardise.weight, whole.encoder.standardise.weight, rtol=1e-3, atol=1e-3)
