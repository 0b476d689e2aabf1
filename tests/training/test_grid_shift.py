"""The moving grid of a training: drawn from (seed, epoch, slide, view), the same for all that a step does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.cohort import PATCH_PX
from tests.training.test_loop import cohort, small_net, trainer
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError
from wsi_ips.geometry import Point
from wsi_ips.slides import read_patch
from wsi_ips.training import step as step_module


def test_off_it_changes_nothing():
    slide, choice = cohort(1)[0], trainer(small_net()).step.choice
    assert choice.placed(slide, 1) is slide


def test_a_grid_is_that_of_its_seed_epoch_slide_and_view():
    slide, other = cohort(2)
    choices = [trainer(small_net(), grid_shift=True).step.choice for _ in range(2)]

    def corner(slide, epoch=1, choice=choices[0]):
        index = choice.placed(slide, epoch).tiles.index
        return (index.x - slide.tiles.index.x).tolist(), (index.y - slide.tiles.index.y).tolist()

    assert corner(slide) == corner(slide, choice=choices[1])
    others = [corner(slide, 2), corner(other), corner(replace(slide, view=1))]
    assert all(found != corner(slide) for found in others)
    moves = [max(map(abs, corner(slide, epoch)[0] + corner(slide, epoch)[1])) for epoch in range(1, 30)]
    assert max(moves) <= PATCH_PX // 2
    assert len(set(moves)) > 5


@pytest.mark.parametrize("start", ["none", "auto"])
def test_scan_and_gradient_see_the_pixels_of_the_moved_grid(monkeypatch, start):
    """Also the tiles of exploration and of a start on random tiles; positions are those of the moved tiles."""
    slides = cohort(3)
    loop = trainer(
        small_net(), epochs=3, grid_shift=True, augment=False, exploration=0.5, start=start,
        **({} if start == "none" else {"start_epochs": 1}),
    )  # fmt: skip
    learned = []
    plain = step_module.Winners.of
    monkeypatch.setattr(
        step_module.Winners,
        "of",
        lambda net, requests, kept: (learned.extend(zip(requests, kept, strict=True)), plain(net, requests, kept))[1],
    )
    loop.step.learn(slides, 1, [torch.ones(2)], torch.optim.SGD(loop.net.parameters(), lr=0.0))
    assert len(learned) == 3
    moves = set()
    for (request, kept), slide in zip(learned, slides, strict=True):
        index = request.index
        moves.add((int(index.x[9] - slide.tiles.index.x[9]), int(index.y[9] - slide.tiles.index.y[9])))
        with slide.tiles.open() as reader:
            for tile, pixels in zip(kept.tiles, kept.pixels, strict=True):
                place = Point(int(index.x[tile]), int(index.y[tile]))
                np.testing.assert_array_equal(pixels, read_patch(reader, place, index.plan))
    assert len(moves) == 3


def test_features_have_no_other_pixels(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output: o\nmanifest: m\nmodel: {input: features}\ntraining: {grid_shift: true}\n")
    with pytest.raises(RecipeError, match=r"`training\.grid_shift` reads other pixels"):
        load_recipe(recipe)
