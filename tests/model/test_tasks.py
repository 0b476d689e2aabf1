"""Several tasks on one slide: each has its own query, its own probabilities and its own loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.model.task_losses import (
    UNKNOWN,
    is_known,
    is_negative,
    probabilities,
    share_right,
    target_tensors,
    task_loss,
    task_losses_each,
)

TASKS = (Task("grade", ("low", "mid", "high")), Task("markers", ("a", "b", "c", "d"), "multi"))


@pytest.fixture
def net() -> IpsNet:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    return IpsNet(encoder, NetSettings(tasks=TASKS, heads=2, key_width=4)).eval()


def test_each_task_has_a_query_and_a_head_of_its_own(net):
    embeddings, mask = torch.randn(2, 5, 64), torch.ones(2, 5, dtype=torch.bool)
    before = net(embeddings, mask)
    assert before.shape == (2, 7)
    with torch.no_grad():
        net.pooling.queries[1] += 1
    after = net(embeddings, mask)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().min() > 0


def test_a_tile_alone_is_scored_for_all_tasks(net):
    patches = torch.rand(3, 3, 32, 32)
    scores = net.score(patches, with_probability=True)
    assert scores.logits.shape == (3, 2, 2)
    alone = net(net.encoder(patches)[:, None], torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(scores.probability, net.probabilities(alone))


def test_one_task_is_the_network_with_classes():
    torch.manual_seed(0)
    one = IpsNet(build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False)))
    embeddings, mask = torch.randn(2, 5, 64), torch.ones(2, 5, dtype=torch.bool)
    one.eval()
    torch.testing.assert_close(one(embeddings, mask), one.head(one.pooling(embeddings, mask)[:, 0]))


def test_probabilities_sum_to_one_where_one_class_holds():
    found = probabilities(torch.randn(5, 7), TASKS)
    torch.testing.assert_close(found[:, :3].sum(1), torch.ones(5))
    assert ((found > 0) & (found < 1)).all()


def test_the_loss_is_the_mean_of_the_losses_of_the_tasks():
    logits = torch.randn(4, 7, dtype=torch.float64)
    targets = [torch.tensor([0, 2, 1, 1]), torch.randint(0, 2, (4, 4)).double()]
    single = functional.cross_entropy(logits[:, :3], targets[0])
    multi = functional.binary_cross_entropy(logits[:, 3:].sigmoid(), targets[1])
    torch.testing.assert_close(task_loss(logits, targets, TASKS), (single + multi) / 2)


def test_slides_whose_label_is_unknown_do_not_count():
    logits = torch.randn(3, 7)
    targets = [torch.tensor([0, UNKNOWN, 1]), torch.tensor([[1.0, torch.nan, 0, 1]] * 3)]
    changed = logits.clone()
    changed[1, :3] += 5
    changed[:, 4] += 5
    torch.testing.assert_close(task_loss(changed, targets, TASKS), task_loss(logits, targets, TASKS))


def test_a_task_without_any_known_label_counts_as_nothing():
    logits = torch.randn(2, 7, requires_grad=True)
    targets = [torch.full((2,), UNKNOWN), torch.full((2, 4), torch.nan)]
    loss = task_loss(logits, targets, TASKS)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_losses_of_each_row_add_up_to_the_loss():
    logits = torch.randn(4, 7)
    targets = [torch.tensor([0, 2, UNKNOWN, 1]), torch.randint(0, 2, (4, 4)).float()]
    targets[1][3] = torch.nan
    each = task_losses_each(logits, targets, TASKS, weights=[None, None])
    assert each.shape == (4, 2)
    assert each[2, 0] == each[3, 1] == 0
    torch.testing.assert_close(each.sum(0).div(3).mean(), task_loss(logits, targets, TASKS))


def test_weights_multiply_losses_and_divide_nothing():
    """Parts of a set, divided by its known slides, add up to it."""
    logits = torch.randn(5, 7, dtype=torch.float64)
    targets = [torch.tensor([0, 2, UNKNOWN, 1, 1]), torch.randint(0, 2, (5, 4)).double()]
    targets[1][3] = torch.nan
    weights = [torch.tensor([3.0, 0.5, 1.0]), torch.tensor([[0.5] * 4, [2.0, 3.0, 4.0, 5.0]])]
    single = functional.cross_entropy(logits[:, :3], targets[0].clamp_min(0), reduction="none")
    single = (single * weights[0][targets[0]])[targets[0] != UNKNOWN].sum() / 4
    multi = functional.binary_cross_entropy_with_logits(logits[:, 3:], targets[1], reduction="none")
    multi = (multi * torch.where(targets[1] > 0, weights[1][1], weights[1][0])).nan_to_num().sum() / (4 * 4)
    whole = task_loss(logits, targets, TASKS, weights=weights)
    torch.testing.assert_close(whole, (single + multi) / 2)
    parts = [
        task_loss(logits[a:b], [t[a:b] for t in targets], TASKS, weights=weights, known=torch.tensor([4, 4]))
        for a, b in ((0, 2), (2, 3), (3, 5))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_the_share_right_is_the_mean_over_tasks_of_what_is_known():
    logits = torch.tensor([[3.0, 0, 0, 1, -1, 1, -1], [0, 3, 0, 1, 1, 1, 1]])
    targets = target_tensors([(0, (True, False, False, False)), (None, (True, True, True, True))], TASKS)
    assert share_right(logits, targets, TASKS) == pytest.approx((1 + 7 / 8) / 2)
    assert math.isnan(share_right(logits, target_tensors([(None, None)] * 2, TASKS), TASKS))


def test_negative_slides_hold_the_first_class_or_none_where_that_is_the_background():
    targets = target_tensors([(0, (False,) * 4), (1, (False, True, False, False)), (None, None)], TASKS)
    stated = [replace(task, background=True) for task in TASKS]
    assert is_negative(targets, stated)[:2].tolist() == [[True, True], [False, False]]
    assert is_negative(targets, TASKS)[:2].tolist() == [[False, True], [False, False]]  # `low` is a finding
    assert not is_negative(targets, [replace(task, background=False) for task in TASKS]).any()
    assert is_known(targets, TASKS).tolist() == [[True, True], [True, True], [False, False]]


@pytest.mark.parametrize(
    ("kind", "classes", "probability", "thresholds", "answer"),
    [
        ("single", ("no", "yes"), (0.75, 0.25), (0.25,), "yes"),
        ("single", ("no", "yes"), (0.7501, 0.2499), (0.25,), "no"),
        ("single", ("a", "b", "c"), (0.2, 0.5, 0.3), (), "b"),
        ("multi", ("a", "b"), (0.5, 0.4999), (), "a"),
        ("multi", ("a", "b"), (0.25, 0.75), (0.25, 0.75), "a;b"),
        ("multi", ("a", "b"), (0.2499, 0.7499), (0.25, 0.75), "none"),
    ],
)
def test_a_class_is_called_from_its_threshold_on_the_threshold_included(kind, classes, probability, thresholds, answer):
    assert Task("t", classes, kind).answer(probability, thresholds) == answer
