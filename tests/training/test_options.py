"""Options of the loop: average of weights, accumulation, balanced visits, patience, reduced precision, divergence."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.training.test_loop import COMPUTE, Recorder, cohort, small_net, trainer
from wsi_ips.errors import DivergedError, RecipeError, TrainingError
from wsi_ips.labels import Task
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.training.loop import epoch_order, epoch_steps
from wsi_ips.training.settings import LabelledSlide
from wsi_ips.training.step import MixedPrecision
from wsi_ips.training.tracking import Cost, EpochRecord, LastSelection, attention_entropy
from wsi_ips.training.validation import Figures, best_epoch, epochs_since_best

COST = Cost(None, 0.0, 0.0, 0.0, 0.0, None)


def record(epoch: int, val_loss: float | None = None, val_auc: float | None = None) -> EpochRecord:
    return EpochRecord(epoch, 1.0, 0.5, val_loss, val_auc, 1e-3, 1.0, 1.0, 0.5, None, 1.0, COST)


def two_task_net() -> IpsNet:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False))
    tasks = (Task("label", ("a", "b")), Task("marks", ("x", "y"), "multi"))
    return IpsNet(encoder, NetSettings(tasks=tasks, heads=2, key_width=8, dropout=0.0))


def two_task_slides() -> list[LabelledSlide]:
    marks = [(True, False), None, (False, False), (True, True), (False, True)]
    labels = [0, 1, None, 0, 1]
    return [replace(s, targets=(a, b)) for s, a, b in zip(cohort(5), labels, marks, strict=True)]


@pytest.mark.parametrize("at_once", [1, 2, 4])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_step_in_parts_is_the_step(at_once, epoch):
    """Weighted classes, unknown labels, two kinds of task, and tile loss; 5 slides in uneven parts."""
    found = []
    for parts in (None, at_once):
        loop = trainer(
            two_task_net(),
            COMPUTE.model_copy(update={"slides_at_once": parts}),
            epochs=3,
            start_epochs=1,
        )
        optimiser = torch.optim.SGD(loop.net.parameters(), lr=0.0)
        weights = [torch.tensor([0.5, 2.0]), torch.tensor([[0.5, 1.0], [3.0, 0.7]])]
        loss, right = loop.step.learn(two_task_slides(), epoch, weights, optimiser)
        found.append((loss, right, {n: p.grad for n, p in loop.net.named_parameters() if p.grad is not None}))
    (whole, right, gradients), (in_parts, right_in_parts, others) = found
    assert in_parts == pytest.approx(whole, rel=1e-6)
    assert right_in_parts == right
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-6, atol=1e-6, msg=name)


def test_the_average_follows_the_weights_by_its_formula():
    net = small_net()
    losses = []
    measure = Recorder(lambda r: losses.append((r.val_loss, loop._validate(cohort(2)).loss)))
    loop = trainer(net, listener=measure, epochs=3, weight_average=0.4)
    seen: list[list[torch.Tensor]] = []
    plain = loop.step.learn

    def step(*arguments):
        figures = plain(*arguments)
        seen.append([p.detach().clone() for p in net.parameters()])
        return figures

    loop.step.learn = step
    loop.fit(cohort(4), cohort(2))
    expected = seen[0]
    for n, now in enumerate(seen[1:], start=1):
        decay = min(0.4, (1 + n) / (10 + n))
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, now, strict=True)]
    assert len(seen) == 6
    for average, other, last in zip(loop.result.parameters(), expected, seen[-1], strict=True):
        torch.testing.assert_close(average, other, rtol=1e-5, atol=1e-6)
        assert average.data_ptr() != last.data_ptr()
    assert not all(torch.equal(a, b) for a, b in zip(loop.result.parameters(), seen[-1], strict=True))
    assert all(told == measured for told, measured in losses)  # it is the average that is validated
    assert trainer(net).result is net


@pytest.mark.parametrize("epoch", range(1, 6))
def test_balanced_visits_show_all_classes_alike(epoch):
    groups = ["rare"] * 2 + ["often"] * 17 + [None] * 3
    order = epoch_order(groups, seed=4, epoch=epoch, balanced=True)
    assert len(order) == len(groups)
    classes = Counter(groups[visit.slide] for visit in order)
    assert classes[None] == 3
    assert sorted([classes["rare"], classes["often"]]) == [9, 10]
    per_slide = Counter(visit.slide for visit in order)
    assert {count for slide, count in per_slide.items() if groups[slide] == "rare"} <= {4, 5}
    assert len(set(order)) == len(order)  # never the same view of a slide
    assert order == epoch_order(groups, seed=4, epoch=epoch, balanced=True)


def test_balanced_visits_leave_no_slide_out_for_long():
    seen = {v.slide for epoch in range(12) for v in epoch_order([0] * 3 + [1] * 15, seed=0, epoch=epoch, balanced=True)}
    assert seen == set(range(18))


def test_an_order_that_is_not_balanced_is_every_slide_once():
    steps = epoch_steps([0, 1, 1, None, 0], seed=1, epoch=2, steps=2, balanced=False)
    assert [len(step) for step in steps] == [3, 2]
    expected = np.random.default_rng([1, 2]).permutation(5).tolist()
    assert [visit.slide for step in steps for visit in step] == expected
    assert all(visit.view == 0 for step in steps for visit in step)


def test_another_view_of_a_slide_has_other_tiles_and_weights_are_not_balanced_twice():
    slides = [replace(slide, targets=(int(i == 0),)) for i, slide in enumerate(cohort(4))]
    listener = Recorder()
    loop = trainer(small_net(), listener=listener, balance="sampling", tile_dropout=0.5)
    first, again = (loop.step.choice._request(0, replace(slides[0], view=view), 1).tiles.tolist() for view in (0, 1))
    assert first != again
    assert loop._class_weights(slides, [])[0].tolist() == [1, 1]
    assert trainer(small_net())._class_weights(slides, [])[0].tolist() != [1, 1]
    assert trainer(small_net(), balance="none")._class_weights(slides, [])[0].tolist() == [1, 1]
    loop.fit(slides, [])
    assert len(listener.records) == 2


def test_the_best_epoch_by_loss_and_by_auc():
    history = [record(1), record(2, 0.5, 0.8), record(3, 0.4, 0.7), record(4, 0.4, 0.8), record(5, 0.45, 0.8)]
    assert best_epoch(history, "loss").epoch == 4  # the later of equals
    assert best_epoch(history, "auc").epoch == 4  # of equal AUCs the lower loss
    assert best_epoch(history[:1], "loss").epoch == 1
    assert best_epoch([record(1), record(2)], "auc").epoch == 2  # nothing to go by: the last
    leapt = [record(1), record(2), replace(record(3), loss=1e9)]
    assert best_epoch(leapt, "loss").epoch == 2  # unless it has diverged
    assert [epochs_since_best(history[:n], "loss") for n in range(6)] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("patience", "epochs"), [(1, 4), (2, 7), (None, 8)])
def test_training_stops_when_patience_runs_out(patience, epochs):
    """Epoch 1 is not validated; epochs 3 and 5 are the best so far."""
    losses = iter([0.9, 0.5, 0.6, 0.4, 0.7, 0.8, 0.9])
    listener = Recorder()
    loop = trainer(small_net(), listener=listener, epochs=8, start_epochs=1, patience=patience)
    loop._validate = lambda slides: Figures(next(losses), None)
    loop.fit(cohort(2), cohort(2))
    assert len(listener.records) == epochs


@pytest.mark.parametrize(
    ("section", "val", "message"),
    [
        ({"patience": 2}, [], "`training.patience`.*`val`"),
        ({"select": "auc"}, [], "`training.select`.*`val`"),
        ({"select": "auc"}, cohort(1), "all alike"),
    ],
)
def test_what_needs_validation_slides_says_so_before_it_trains(section, val, message):
    loop = trainer(small_net(), **section)
    loop.step.learn = lambda *_: pytest.fail("trained")
    with pytest.raises(TrainingError, match=message):
        loop.fit(cohort(2), val)


def test_validation_auc_is_scikit_learns():
    slides = cohort(7)
    loop = trainer(small_net())
    found = loop._validate(slides)
    alone = [loop._validate([replace(slide, targets=(1,))]).loss for slide in slides]  # -log p(class 1)
    assert found.auc == pytest.approx(roc_auc_score([s.targets[0] for s in slides], np.exp(-np.array(alone))))
    assert loop._validate(slides[:1]).auc is None


def test_bfloat16_learns_nearly_the_same_gradient():
    gradients = []
    for precision in ("fp32", "bf16"):
        loop = trainer(small_net(), COMPUTE.model_copy(update={"gradient_precision": precision}))
        loop.step.learn(cohort(3), 1, [torch.ones(2)], torch.optim.SGD(loop.net.parameters(), lr=0.0))
        gradients.append(torch.cat([p.grad.flatten() for p in loop.net.parameters() if p.grad is not None]))
    assert gradients[1].dtype == torch.float32
    assert not torch.equal(*gradients)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


def test_float16_is_refused_on_a_cpu():
    with pytest.raises(RecipeError, match=r"`compute.gradient_precision`.*GPU"):
        trainer(small_net(), COMPUTE.model_copy(update={"gradient_precision": "fp16"}))


def test_float16_leaves_out_a_step_that_overflows_and_goes_on_with_a_smaller_scale():
    """PyTorch scales on CPUs too, so the path is tried here, though the recipe refuses it there."""
    loop = trainer(small_net())
    loop.step.precision = MixedPrecision(torch.device("cpu"), torch.float16)
    optimiser = torch.optim.AdamW(loop.net.parameters(), lr=1e-3)
    loop.step.precision._lazy_init_scale_growth_tracker(torch.device("cpu"))
    loop.step.precision.update(2.0**120)
    before = [p.detach().clone() for p in loop.net.parameters()]
    loss, _ = loop.step.learn(cohort(2), 1, [torch.ones(2)], optimiser)
    assert math.isfinite(loss)
    assert all(torch.equal(a, b) for a, b in zip(loop.net.parameters(), before, strict=True))
    assert loop.step.precision.get_scale() < 2.0**120
    again = MixedPrecision(torch.device("cpu"), torch.float16)
    again.load_state_dict(loop.step.precision.state_dict())
    assert again.state_dict() == loop.step.precision.state_dict()
    loop.step.precision.update(2.0**8)
    loop.step.learn(cohort(2), 1, [torch.ones(2)], optimiser)
    assert not all(torch.equal(a, b) for a, b in zip(loop.net.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm():
    loop = trainer(small_net())
    before = [p.detach().clone() for p in loop.net.parameters()]
    loop.net.head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(DivergedError, match=r"gradient is (nan|inf).*learning rate 0\.0005.*try 1e-04"):
        loop.fit(cohort(2), [])
    after = [p for n, p in loop.net.named_parameters() if not n.startswith("encoder.")]
    named = [b for (n, _), b in zip(loop.net.named_parameters(), before, strict=True) if not n.startswith("encoder.")]
    assert all(torch.equal(a, b) for a, b in zip(after, named, strict=True))


def test_an_absurd_learning_rate_stops_with_the_rate_and_what_to_try():
    with pytest.raises(DivergedError, match=r"`training.learning_rate` is 1e\+30: try 3e-04"):
        trainer(small_net(), learning_rate=1e30, epochs=5).fit(cohort(4), [])


def test_a_loss_that_leaps_is_no_error():
    net, losses = small_net(), []

    def leap(epoch_record: EpochRecord) -> None:
        losses.append(epoch_record.loss)
        if epoch_record.epoch == 1:
            with torch.no_grad():
                net.head.weight.mul_(1e4)

    trainer(net, listener=Recorder(leap), epochs=4, learning_rate=1e-5).fit(cohort(3), [])
    assert len(losses) == 4
    assert losses[1] > 100 * losses[0]


def test_figures_of_an_epoch_are_those_of_its_tiles():
    listener = Recorder()
    trainer(small_net(), listener=listener, epochs=3, start_epochs=1, tile_dropout=0.0).fit(cohort(4), cohort(2))
    records = listener.records
    warm, first, second = records
    assert warm.cost.tiles_per_s is None
    assert warm.selection_overlap is None
    assert first.selection_overlap is None  # nothing to compare with yet
    assert 0 <= second.selection_overlap <= 1
    for entry in records:
        assert 0 < entry.attention_entropy <= 1
        assert 0 < entry.gradient_norm <= entry.gradient_norm_max
        shares = (entry.cost.read_share, entry.cost.scan_share, entry.cost.gradient_share)
        assert all(share >= 0 for share in shares)
        assert sum(shares) <= 1.0001
        assert entry.cost.peak_rss_mb > 50
    assert first.cost.tiles_per_s > 0
    assert EpochRecord.from_dict({**vars(second), "cost": vars(second.cost)}) == second


def test_the_share_of_kept_tiles_inside_outlines_is_that_of_slides_with_outlines():
    """Slides without an annotation, and those whose outlines cover no tile, do not count; random tiles neither."""
    slides, listener = cohort(4), Recorder()
    for number, inside in ((0, [0.6] * 28), (1, [0.4] * 28), (2, [1.0] * 10 + [0.5] * 18)):
        index = replace(slides[number].tiles.index, tumour_fraction=np.array(inside, np.float32))
        slides[number] = replace(slides[number], tiles=replace(slides[number].tiles, index=index))
    loop = trainer(small_net(), listener=listener, epochs=2, start_epochs=1, batch_slides=2)
    best: dict[str, np.ndarray] = {}
    plain = loop.step.last.overlap

    def overlap(slide_id, tiles):
        best[slide_id] = tiles
        return plain(slide_id, tiles)

    loop.step.last.overlap = overlap
    loop.fit(slides, [])
    assert len(best["s2"]) == 5
    assert [r.kept_in_outlines for r in listener.records] == [None, pytest.approx((1 + (best["s2"] < 10).mean()) / 2)]


def test_overlap_counts_the_best_tiles_that_stayed():
    last = LastSelection(3)
    assert last.overlap("a", np.array([5, 2, 9])) is None
    assert last.overlap("a", np.array([9, 4, 5])) == pytest.approx(2 / 3)
    again = LastSelection(3)
    again.load_state_dict(last.state_dict())
    assert again.overlap("a", np.array([4, 9, 5])) == 1
    assert again.overlap("b", np.array([4])) is None


def test_entropy_is_one_where_attention_is_even_and_nothing_where_it_is_on_one_tile():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])[:, :, None]
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, False, False]])
    assert attention_entropy(weights, mask).tolist() == pytest.approx([1, 0, 1])
