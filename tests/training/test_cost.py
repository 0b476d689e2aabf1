"""The cost of a training that `wsi-ips check` prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_ips.config import Recipe
from wsi_ips.training.cost import GRADIENT_COST, training_cost
from wsi_ips.training.self_supervision import TILES_PER_STEP

TRAIN, VAL = [100, 1000, 50, 400], [200]
SMALL = {"encoder": "resnet18-1", "memory_size": 64}


def cost_of(model: dict[str, object], outlined: int = 0, **training: object):
    sections = {"model": SMALL | model, "training": {"batch_slides": 2} | training, "tiles": {"patch_px": 32}}
    return training_cost(Recipe(output=Path("out"), manifest=Path("m.csv"), **sections), TRAIN, VAL, outlined)


def test_features_are_embedded_in_every_view_then_tiles_are_selected():
    found = cost_of({"weights": Path("weights.safetensors")}, start_steps=3, epochs=2, tile_dropout=0.5)
    assert found.start.name == "features"
    assert found.start_steps == 4  # 3 steps are two epochs of two steps
    assert found.embedded == 2 * sum(TRAIN) + sum(VAL)
    assert found.steps == 4
    assert found.scanned == 2 * (round(sum(TRAIN) / 2) + sum(VAL))
    assert found.learned == 2 * (64 + 64 + 50 + 64)
    forward = found.embedded + found.scanned + GRADIENT_COST * found.learned
    assert found.hours == pytest.approx(forward / found.tiles_per_s / 3600)


def test_random_tiles_are_learned_from_without_a_scan():
    found = cost_of({}, start_steps=5, epochs=8)
    assert (found.start.name, found.start_steps, found.embedded) == ("random-tiles", 5, 0)
    assert found.steps == 3 * 2  # eight epochs, five of them the start
    assert found.learned == 5 * 4 * len(TRAIN) + 3 * (64 + 64 + 50 + 64)


@pytest.mark.parametrize(("outlined", "known_tiles", "start"), [(4, 0.25, "outlines"), (3, 0.25, "random-tiles")])
def test_a_few_outlined_slides_decide_where_there_are_no_weights(outlined, known_tiles, start):
    assert cost_of({}, outlined, known_tiles=known_tiles, epochs=2).start.name == start
    assert cost_of({}, outlined, known_tiles=0, epochs=2).start.name == "random-tiles"


def test_self_supervision_counts():
    found = cost_of({}, start="self-supervised", start_steps=10, epochs=1, augment=False)
    assert found.start_steps == 10 + 400
    assert found.embedded == sum(TRAIN) + sum(VAL)  # one view, for nothing is augmented
    assert found.learned == 10 * TILES_PER_STEP + (64 + 64 + 50 + 64)


def test_stored_features_need_no_scan():
    found = cost_of({"input": "features"}, start_steps=1, epochs=3)
    assert (found.scanned, found.learned, found.embedded) == (0, 0, sum(TRAIN) + sum(VAL))
