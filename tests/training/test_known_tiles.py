"""Outlines of a few slides: what is drawn in the start, what goes on after it, and that it pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import shapely
import torch
from sklearn.metrics import roc_auc_score

from tests.cohort import outlines_of, textured_slide
from tests.training import test_resume
from tests.training.test_loop import COMPUTE, small_net, trainer
from wsi_ips.annotations import tumour_fraction
from wsi_ips.errors import TrainingError
from wsi_ips.labels import Task
from wsi_ips.model.net import IpsNet
from wsi_ips.model.task_losses import share_losses_each, task_losses_each
from wsi_ips.scanning import ScanOptions, plain_patches, scan_slides
from wsi_ips.training.known_tiles import KnownTiles, with_missed
from wsi_ips.training.loop import Trainer
from wsi_ips.training.loss import StepLoss, shares_with_truth
from wsi_ips.training.settings import LabelledSlide
from wsi_ips.training.step import truth_table
from wsi_ips.training.tile_truth import Kind, tile_truth

TASKS = (Task("label", ("normal", "tumor")),)
TUMOUR, NOTHING = Kind(0, 1), Kind(0, None)
NAN = float("nan")


def slide(number: int, *, outlined: bool = False, complete: bool = True, columns: int = 7, rows: int = 4):
    """Slide ``number`` of a cohort, of which every second one has three tumour tiles."""
    label, size = number % 2, {"columns": columns, "rows": rows}
    tiles = textured_slide(f"s{number}", label=label, seed=number, **size)
    areas = outlines_of(seed=number, **size) if outlined and label else None
    return LabelledSlide(tiles, (label,), truth=tile_truth(tiles.index, (label,), TASKS, areas, complete=complete))


def cohort(count: int, outlined: Sequence[int], **more) -> list[LabelledSlide]:
    return [slide(number, outlined=number in outlined, **more) for number in range(count)]


def starting(epochs: int = 2, **given) -> tuple[Trainer, KnownTiles]:
    loop = trainer(small_net(), start="outlines", epochs=epochs, start_epochs=epochs, **given)
    start = loop.step.choice.start_of(1)
    assert isinstance(start, KnownTiles)
    return loop, start


def test_each_step_has_as_many_tumour_tiles_as_background_from_many_slides():
    """Of 40 slides 20 have tumour, in 3 of 28 tiles, and three of those are outlined."""
    train = cohort(40, outlined=[1, 7, 33])
    loop, _ = starting()
    for epoch in (1, 2):
        slides = {TUMOUR: Counter(), NOTHING: Counter()}
        for batch in loop._batches(train, epoch):
            kept = loop.step.choice.kept(loop.net, batch, epoch, {})
            shares = np.concatenate([visit.truth.of(k.tiles) for visit, k in zip(batch, kept, strict=True)])
            assert not np.isnan(shares).any()
            tumour, background = (int(shares[:, number].sum()) for number in (1, 0))
            assert abs(tumour - 3 / 4 * background) <= 6  # a lesion has three tiles, one fewer than are asked for
            assert [len(k.tiles) for k in kept] == [loop.step.choice.kept_count(visit, epoch) for visit in batch]
            for visit in batch:
                slides[visit.draws][visit.slide_id] += 1
                assert visit.targets == (int(visit.draws == TUMOUR),)
        assert sum(slides[TUMOUR].values()) == sum(slides[NOTHING].values()) == 20
        assert set(slides[TUMOUR]) == {"s1", "s7", "s33"}
        assert max(slides[TUMOUR].values()) - min(slides[TUMOUR].values()) <= 1
        assert len(slides[NOTHING]) == 20  # of 23: those without tumour, and the tissue around the outlines


def test_visits_follow_from_the_seed_and_the_epoch_and_repeat_no_view():
    train = cohort(12, outlined=[1])
    loop, start = starting()

    def drawn(epoch: int) -> list[tuple[str, int, list[int]]]:
        visits = [visit for batch in loop._batches(train, epoch) for visit in batch]
        kept = loop.step.choice.kept(loop.net, visits, epoch, {})
        return [(visit.slide_id, visit.view, k.tiles.tolist()) for visit, k in zip(visits, kept, strict=True)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len({(slide_id, view) for slide_id, view, _ in drawn(1)}) == len(train)  # so augmentation differs
    assert start.visits(train, 1) == start.visits(train, 1)


def test_without_outlines_or_without_anything_else_the_start_says_what_to_do():
    _, start = starting()
    with pytest.raises(TrainingError, match=r"none of the 4 .* column `annotation` .* split `train`"):
        start.visits(cohort(4, outlined=[]), 1)
    partial = [slide(number, outlined=True, complete=False) for number in (1, 3)]
    with pytest.raises(TrainingError, match=r"only `tumor`.*column `outlines`"):
        start.visits(partial, 1)
    loop, _ = starting()
    with pytest.raises(TrainingError, match="needs outlined lesions"):
        loop.fit(cohort(4, outlined=[]), [])


def test_tiles_that_selection_missed_replace_the_last_that_lie_outside():
    truth = slide(1, outlined=True).truth
    inside, outside = truth.tiles, np.setdiff1d(np.arange(28), truth.tiles)
    kept = np.concatenate([outside[:3], inside[:1], outside[3:7]])  # eight, one of them inside
    found = with_missed(truth, kept, 0.25, np.random.default_rng(0))  # two are wanted
    assert found.stay.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert set(found.drawn.tolist()) < set(inside[1:].tolist())
    every = with_missed(truth, kept, 1.0, np.random.default_rng(0))
    assert sorted(every.drawn.tolist()) == sorted(inside[1:].tolist())
    assert every.stay.tolist() == [0, 1, 2, 3, 4, 5]
    assert not len(with_missed(truth, inside, 0.25, np.random.default_rng(0)).drawn)
    negative = slide(0).truth
    assert not len(with_missed(negative, np.arange(8), 0.25, np.random.default_rng(0)).drawn)


def test_after_the_start_outlined_tiles_are_always_kept_and_no_others_change():
    train = cohort(2, outlined=[1])
    kept = {}
    for share in (0.0, 0.6):  # of five
        loop = trainer(small_net(), epochs=3, known_tiles=share, exploration=0.0)
        kept[share] = loop.step.choice.kept(loop.net, train, 2, {})
    assert set(train[1].truth.tiles.tolist()) <= set(kept[0.6][1].tiles.tolist())
    assert len(kept[0.6][1].tiles) == len(set(kept[0.6][1].tiles.tolist())) == 5
    np.testing.assert_array_equal(kept[0.6][0].tiles, kept[0.0][0].tiles)


def test_tiles_of_a_moved_grid_are_taught_what_they_show_there():
    one = slide(1, outlined=True)
    loop = trainer(small_net(), epochs=3, grid_shift=True)
    (placed,) = (loop.step.choice.placed(one, epoch) for epoch in (2,))
    index, outlines = placed.tiles.index, shapely.union_all([area.region for area in outlines_of(seed=1)])
    assert not np.array_equal(index.x, one.tiles.index.x)
    expected = tumour_fraction(outlines, index.boxes_px0)
    np.testing.assert_allclose(placed.truth.of(np.arange(28))[:, 1], expected, atol=1e-6)
    assert placed.truth.shares[:, 1].min() < 1


def test_known_tiles_share_half_and_half_and_the_unknown_keep_their_order():
    share = torch.tensor([0.5, 0.3, 0.2, 0.0]).view(1, 4, 1)
    mask = torch.ones(1, 4, dtype=torch.bool)
    truth = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    found = shares_with_truth(share, truth, mask, TASKS)[0, :, 0]
    torch.testing.assert_close(found, torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6]))
    partial = torch.tensor([[[0.0, 1.0], [NAN, NAN], [NAN, NAN], [NAN, NAN]]])
    found = shares_with_truth(share, partial, mask, TASKS)[0, :, 0]
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75 * 0.6, 0.75 * 0.4, 0.0]))
    unknown = torch.full((1, 4, 2), NAN)
    assert torch.equal(shares_with_truth(share, unknown, mask, TASKS), share)


def test_a_share_of_one_class_is_its_label_and_other_shares_lie_between():
    torch.manual_seed(0)
    tasks = (*TASKS, Task("signs", ("a", "b"), "multi"))
    logits = torch.randn(3, 4)
    truth = torch.tensor([[0, 1.0, 1, 0], [1, 0, 0, 1], [NAN, NAN, NAN, NAN]])
    labels = [torch.tensor([1, 0, -1]), truth[:, 2:]]
    weights = [torch.tensor([0.5, 2.0]), torch.tensor([3.0, 1.0])]
    expected = task_losses_each(logits, labels, tasks, weights=weights)
    torch.testing.assert_close(share_losses_each(logits, truth, tasks, weights=weights), expected)
    half = share_losses_each(logits[:1, :2], torch.tensor([[0.5, 0.5]]), TASKS, weights=[None])
    both = [task_losses_each(logits[:1, :2], [torch.tensor([n])], TASKS, weights=[None]) for n in (0, 1)]
    torch.testing.assert_close(half, (both[0] + both[1]) / 2)


def loss_of(net: IpsNet, label: int, truth: torch.Tensor | None, embeddings: torch.Tensor, **more) -> torch.Tensor:
    mask = torch.ones(embeddings.shape[:2], dtype=torch.bool)
    loss = StepLoss([None], known=torch.tensor([1]), truth=truth, **more)
    return loss.of_tiles(net, [torch.tensor([label])], embeddings, mask)


def test_a_kept_stroma_tile_of_an_outlined_tumour_slide_is_taught_as_background():
    net = small_net().eval()
    embeddings = torch.randn(1, 2, net.encoder.width)
    alone = net.classify(net.pooling.alone(embeddings[0])).log_softmax(1)
    stroma_and_border = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]])
    found = loss_of(net, 1, stroma_and_border, embeddings)
    # Lesions: the border tile alone. Background: 1 and 0.4 tiles
    share = torch.tensor([0.5 * 1 / 1.4, 0.5 + 0.5 * 0.4 / 1.4])
    each = -torch.stack([alone[0, 0], 0.4 * alone[1, 0] + 0.6 * alone[1, 1]])
    torch.testing.assert_close(found, (share * each).sum())


def test_in_the_start_a_tile_of_unknown_truth_teaches_nothing_alone():
    net = small_net().eval()
    embeddings = torch.randn(1, 3, net.encoder.width)
    truth = torch.tensor([[[0.0, 1.0], [NAN, NAN], [NAN, NAN]]])
    alone = net.classify(net.pooling.alone(embeddings[0])).log_softmax(1)
    torch.testing.assert_close(loss_of(net, 1, truth, embeddings, drawn=3), -alone[0, 1] / 3)


def test_slides_of_one_label_lose_the_same_with_the_truth_that_it_implies():
    net = small_net().eval()
    embeddings = torch.randn(1, 4, net.encoder.width)
    background = torch.tensor([1.0, 0.0]).expand(1, 4, 2)
    torch.testing.assert_close(loss_of(net, 0, background, embeddings), loss_of(net, 0, None, embeddings))


def test_attention_is_drawn_to_known_lesions_where_the_rest_of_the_slide_is_known_too():
    attention = torch.tensor([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3], [0.1, 0.6, 0.3]])[:, :, None].requires_grad_()
    lesion_and_rest = [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]
    truth = torch.tensor([lesion_and_rest, [[1.0, 0.0]] * 3, [[0.0, 1.0], [NAN, NAN], [NAN, NAN]]])
    loss = StepLoss([None], known=torch.tensor([3]), truth=truth)
    found = loss.of_attention(attention, truth, TASKS)
    torch.testing.assert_close(found, -torch.tensor(0.1 + 0.5 * 0.3).log() / 3)
    found.backward()
    gradient = attention.grad[..., 0]
    assert gradient[0, 0] < gradient[0, 2] < gradient[0, 1]
    assert not gradient[1:].any()  # nothing to tell apart on the others
    others = [loss.of_attention(attention, truth, TASKS, own) for own in ([0], [1, 2])]
    torch.testing.assert_close(sum(others), found)


def test_the_table_of_a_step_holds_the_truth_of_the_own_slides():
    train = cohort(3, outlined=[1])
    loop = trainer(small_net(), epochs=3)
    kept = loop.step.choice.kept(loop.net, train, 2, {})
    table = truth_table(train, {1: kept[1]}, 6, 2)
    np.testing.assert_allclose(table[1, :5].numpy(), train[1].truth.of(kept[1].tiles))
    assert table[[0, 2]].isnan().all()
    assert table[1, 5].isnan().all()
    assert truth_table([replace(one, truth=None) for one in train], {}, 6, 2) is None


@pytest.mark.parametrize("died_after", range(5))
def test_killed_before_any_step_it_ends_with_the_very_weights(tmp_path, monkeypatch, died_after):
    """One step in each of two epochs of the start, then two of selection with known tiles in it."""
    monkeypatch.setattr(test_resume, "cohort", lambda count: cohort(count, outlined=[1]))
    settings = {"epochs": 4, "start_epochs": 2, "start": "outlines", "known_tiles": 0.6, "tile_dropout": 0.2}
    expected = test_resume.fit(None, settings=settings)
    with pytest.raises(test_resume.Killed):
        test_resume.fit(tmp_path / "state", die_after=died_after, settings=settings)
    test_resume.assert_same(test_resume.fit(tmp_path / "state", settings=settings), expected)


def tile_auc(net: IpsNet, numbers: Sequence[int], **size) -> float:
    """AUC of attention over all tiles of slides with tumour."""
    truths, scores = [], []
    for number in numbers:
        one = slide(number, outlined=True, **size)
        options = ScanOptions(len(one.tiles.index), COMPUTE)
        (best,) = scan_slides(net, [one.tiles], plain_patches(torch.device("cpu")), options)
        score = np.empty(len(best.tiles))
        score[best.tiles] = best.score
        truths.append(one.truth.is_lesion(np.arange(len(score))))
        scores.append(score)
    return float(roc_auc_score(np.concatenate(truths), np.concatenate(scores)))


def test_outlines_of_a_quarter_of_the_slides_rank_tiles_better_than_random_tiles_of_all():
    """Lesions are three of 500 tiles; both starts take as many steps, slides and tiles, and none has a scan."""
    size = {"columns": 25, "rows": 20}
    train = cohort(16, outlined=[1, 9], **size)
    aucs = {}
    for start in ("outlines", "random-tiles"):
        net = small_net()
        trainer(net, start=start, epochs=12, start_epochs=12, warmup_steps=2).fit(train, [])
        aucs[start] = tile_auc(net, [101, 103, 105], **size)
    assert aucs["outlines"] > 0.95
    assert aucs["outlines"] > aucs["random-tiles"] + 0.1
