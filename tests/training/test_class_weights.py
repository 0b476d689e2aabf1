"""Class weights give each class its share however few slides are in a step, in slide loss and tile loss."""

from __future__ import annotations

import math

import pytest
import torch

from tests.training.test_loop import Recorder, cohort, small_net, trainer
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.task_losses import is_known, target_tensors, task_loss
from wsi_ips.training.loop import epoch_steps
from wsi_ips.training.loss import StepLoss, class_weights, guess

LABEL, SIGNS = Task("label", ("normal", "tumor")), Task("signs", ("a",), "multi")
WITH_UNKNOWN = Task("label", ("x", "y"), background=False)


def net_of(*tasks: Task) -> IpsNet:
    """A network whose head gives the same answer to everything: what a slide adds to a loss is its weight."""
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    net = IpsNet(encoder, NetSettings(tasks=tasks, heads=2, key_width=8, dropout=0.0)).eval()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
    return net


@pytest.mark.parametrize("batch_slides", [1, 4, 8, 16])
@pytest.mark.parametrize("tile_weight", [0.0, 1.0])
@pytest.mark.parametrize("task", [LABEL, SIGNS, WITH_UNKNOWN])
def test_a_class_of_one_slide_in_ten_has_half_of_the_weight(batch_slides, tile_weight, task):
    """By the step's own sum of weights it had 0.10, 0.27, 0.37 and 0.44."""
    truths = [int(i % 10 == 0) for i in range(100)]
    targets = [(t,) if task.kind == "single" else ((bool(t),),) for t in truths]
    if task is WITH_UNKNOWN:
        targets[1::4] = [(None,)] * 25  # all of them of the frequent class
    weights = [class_weights(target_tensors(targets, [task])[0], task, balanced=True)]
    net, generator = net_of(task), torch.Generator().manual_seed(0)
    shares = {0: 0.0, 1: 0.0}
    for epoch in range(1, 5):
        for visits in epoch_steps(truths, seed=0, epoch=epoch, steps=math.ceil(100 / batch_slides), balanced=False):
            given = target_tensors([targets[visit.slide] for visit in visits], [task])
            tiles = torch.randn(len(visits), 3, net.encoder.width, generator=generator)
            mask = torch.ones(len(visits), 3, dtype=torch.bool)
            loss = StepLoss(weights, is_known(given, [task]).sum(0).clamp_min(1), tile_weight)
            for number, visit in enumerate(visits):
                shares[truths[visit.slide]] += float(loss(net, given, tiles, mask, [number]).loss.detach())
    assert shares[1] / sum(shares.values()) == pytest.approx(0.5, abs=0.02)


def test_weights_of_a_class_and_of_its_absence_average_to_one():
    truth = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, torch.nan]])
    weights = class_weights(truth, Task("signs", ("a", "b"), "multi"), balanced=True)
    assert weights.tolist() == [[pytest.approx(2 / 3), 1.0], [2.0, 1.0]]  # the second class tells nothing apart


@pytest.mark.parametrize("batch_slides", [1, 2, 5])
def test_gradients_of_an_epoch_of_small_steps_add_up_to_that_of_one_large_step(batch_slides):
    """On random tiles, which follow from the epoch and the slide; two slides of ten are of the rare class."""
    slides = [slide for slide in cohort(20) if slide.targets == (0,)][:8] + cohort(4)[1::2]

    def gradients(size: int) -> dict[str, torch.Tensor]:
        loop = trainer(small_net(), batch_slides=size, start_epochs=1, clip=0.0)
        weights = loop._class_weights(slides, [])
        optimiser = torch.optim.SGD(loop.net.parameters(), lr=0.0)
        total: dict[str, torch.Tensor] = {}
        for first in range(0, len(slides), size):
            loop.step.learn(slides[first : first + size], 1, weights, optimiser)
            for name, parameter in loop.net.named_parameters():
                if parameter.grad is not None:
                    total[name] = total.get(name, 0) + parameter.grad * size / len(slides)
        return total

    whole = gradients(len(slides))
    for name, gradient in gradients(batch_slides).items():
        assert (gradient - whole[name]).norm() < 1e-4 * whole[name].norm().clamp_min(1e-6), name


def test_guessing_is_the_answer_with_the_least_loss_and_its_loss_is_the_entropy():
    tasks = (Task("label", ("a", "b", "never")), SIGNS)
    targets = target_tensors([(int(i < 1), (i < 3,)) for i in range(10)], tasks)
    even = [torch.ones(3), torch.ones(2, 1)]
    found = guess(targets, tasks, even, even=False)
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.1, 0.3)]
    assert float(task_loss(found.expand(10, -1), targets, tasks)) == pytest.approx(sum(entropy) / 2, rel=1e-4)
    balanced = [class_weights(*pair, balanced=True) for pair in zip(targets, tasks, strict=True)]
    found = guess(targets, tasks, balanced, even=False)
    loss = task_loss(found.expand(10, -1), targets, tasks, weights=balanced)
    assert float(loss) == pytest.approx(math.log(2), rel=1e-4)
    visited = guess(targets, tasks, even, even=True)
    assert visited[:2].tolist() == pytest.approx([0, 0])
    assert visited[3] == found.new_tensor(3 / 7).log()


@pytest.mark.parametrize("balance", ["weights", "sampling"])
def test_a_network_that_guesses_has_the_loss_of_guessing_in_every_epoch(balance):
    """With a tile loss, in the start phase and after it; the rare class is one slide of five."""
    net, listener = small_net(), Recorder()
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
    slides = [slide for slide in cohort(9) if slide.targets == (0,)][:4] + cohort(2)[1:]
    loop = trainer(net, listener=listener, epochs=3, start_epochs=1, learning_rate=1e-12, balance=balance)
    loop.fit(slides, [])
    for record in listener.records:
        assert record.loss == pytest.approx(record.guess_loss, rel=1e-4)
    assert [record.selection_done for record in listener.records] == [None, 0.5, 1.0]


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e3])
def test_a_gradient_is_shortened_to_the_norm_that_is_asked_for(clip):
    loop = trainer(small_net(), clip=clip)
    loop.step.learn(cohort(3), 1, [torch.ones(2)], torch.optim.SGD(loop.net.parameters(), lr=0.0))
    norm = torch.cat([p.grad.flatten() for p in loop.net.parameters() if p.grad is not None]).norm()
    before = loop.step.choice.meter.mean("gradient_norm")
    assert before > 1e-2
    assert float(norm) == pytest.approx(1e-3 if clip == 1e-3 else before, rel=1e-3)
