"""The map the recipe asks for comes first, everywhere; tiles that a score says nothing of are not drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.test_run import write_recipe
from wsi_ips.config import load_recipe
from wsi_ips.config.sections import HeatmapSection
from wsi_ips.errors import RecipeError, ScoresError
from wsi_ips.inference import read_scores
from wsi_ips.pipeline import Run, run_until
from wsi_ips.pipeline.maps.heatmap import heatmap_stage
from wsi_ips.pipeline.maps.layers import map_kinds, map_scores
from wsi_ips.pipeline.view import RunCollection
from wsi_ips.results import odds_share


def test_probability_and_attention_are_always_drawn():
    assert map_kinds(HeatmapSection()) == ("probability", "attention")
    assert map_kinds(HeatmapSection(score="attention")) == ("attention", "probability")
    assert map_kinds(HeatmapSection(score="evidence")) == ("evidence", "probability", "attention")


def test_share_of_the_odds_is_what_they_lose():
    np.testing.assert_allclose(odds_share(np.log([1.0, 2.0, 0.1, 10.0])), [0, 0.5, 0, 0.9], rtol=1e-6)
    with pytest.raises(ScoresError, match="not finite"):
        odds_share(np.array([np.nan]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    model = {"encoder": "resnet18-1", "memory_size": 4, "heads": 2, "key_width": 8, "evidence": True}
    path = write_recipe(folder, model=model)
    run_until(load_recipe(path), "train")
    run_until(load_recipe(path), "predict")
    return path


def drawn(path: Path, score: str) -> Run:
    run = Run.open(load_recipe(path, {"heatmap.score": score}))
    assert heatmap_stage(run) > 0
    assert not [s for s in run.states if s.state == "failed"]
    return run


@pytest.mark.parametrize("score", ["evidence", "leave-one-out"])
def test_the_chosen_score_is_drawn_and_is_the_first_map_of_the_viewer(trained, score):
    run = drawn(trained, score)
    name = next(r.slide_id for r in run.records if r.split == "test")
    scores = read_scores(run.folder.scores, name)
    tiles, values = map_scores(scores, score)
    shown = len(scores.kept) if score == "leave-one-out" else len(scores.tile_probability)
    assert len(tiles) == len(values) == shown > 0
    assert (np.diff(tiles) > 0).all()
    assert ((values >= 0) & (values < 1)).all()
    facts = json.loads((run.folder.root / "heatmaps" / f"{name}_{score}.json").read_text())
    assert (facts["kind"], facts["tiles"]) == (score, shown)
    assert facts["value_range"] == pytest.approx([values.min(), values.max()])
    collection = RunCollection(run)
    layers = collection.detail(name).layers
    assert [layer.kind for layer in layers][:3] == [score, "probability", "attention"]
    assert (layers[0].values > 0).sum() == shown
    assert f"{name}_{score}.png" in [d.name for d in collection.downloads(name)]
    collection.close()


def test_leave_one_out_is_placed_on_its_tiles(trained):
    run = Run.open(load_recipe(trained))
    for record in (r for r in run.records if r.split == "test"):
        scores = read_scores(run.folder.scores, record.slide_id)
        tiles, values = map_scores(scores, "leave-one-out")
        fall = dict(zip(scores.kept.tolist(), scores.left_out.tolist(), strict=True))
        np.testing.assert_allclose(values, [max(0.0, 1 - np.exp(-fall[t])) for t in tiles.tolist()], atol=1e-6)


def test_evidence_of_a_model_without_it_is_refused(trained):
    card = load_recipe(trained).output / "model" / "model.json"
    before = card.read_text()
    card.write_text(json.dumps(json.loads(before) | {"evidence": False}))
    try:
        with pytest.raises(RecipeError, match=r"key `heatmap.score`: .* not trained with `model.evidence`"):
            heatmap_stage(Run.open(load_recipe(trained, {"heatmap.score": "evidence"})))
    finally:
        card.write_text(before)
