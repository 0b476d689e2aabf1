"""Stage ``heatmap``: the maps of the recipe are drawn, the main map first, and the viewer shows them in that order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.small_cohort import write_recipe
from wsi_ips.config import load_recipe
from wsi_ips.config.output_sections import HandoffSection, HeatmapSection
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.pipeline.heatmap_stage import handoff_stage, heatmap_stage
from wsi_ips.pipeline.run_viewer import RunCollection
from wsi_ips.results.score_maps import SCORE_MAPS, ScoreMap


def test_maps_and_formats_are_checked_against_their_registries():
    assert HeatmapSection(maps=("attention", "attention")).maps == ("attention",)
    with pytest.raises(ValueError, match="there is no score map `atention`; did you mean `attention`"):
        HeatmapSection(maps=("atention",))
    with pytest.raises(ValueError, match="at least 1 item"):
        HeatmapSection(maps=())
    with pytest.raises(ValueError, match="there is no hand-off format `pdf`; choose one of overlays, ome-tiff"):
        HandoffSection(formats=("pdf",))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maps")
    path = write_recipe(folder, model={"encoder": "resnet18-1", "memory_size": 4, "heads": 2, "key_width": 8})
    run_stage(load_recipe(path), "train")
    run_stage(load_recipe(path), "predict")
    return path


def margin_of(scores) -> np.ndarray:
    """A map of another package: how far a tile's probability is from 0.5."""
    return np.abs(scores.positive_probability - 0.5) * 2


@pytest.fixture
def with_margin(monkeypatch: pytest.MonkeyPatch) -> ScoreMap:
    entry = ScoreMap(
        "margin", f"{__name__}:margin_of", "certainty of a tile", "Certainty", legend="certainty", comparable=False
    )
    monkeypatch.setitem(SCORE_MAPS._entries, "margin", entry)
    return entry


@pytest.mark.parametrize("maps", [("attention",), ("margin", "probability")])
def test_the_maps_of_the_recipe_are_drawn_handed_over_and_shown_in_order(trained, with_margin, maps):
    run = Run.open(load_recipe(trained, {"heatmap.maps": list(maps)}))
    assert heatmap_stage(run.maps) > 0
    assert heatmap_stage(run.maps) == 0
    assert handoff_stage(run.maps) > 0
    assert not [s for s in run.states if s.state == "failed"]
    name = next(r.slide_id for r in run.slides.records if r.split == "test")
    scores = read_scores(run.folder.scores, name)
    values = SCORE_MAPS[maps[0]].values(scores)
    facts = json.loads((run.folder.root / "heatmaps" / f"{name}_{maps[0]}.json").read_text())
    assert (facts["kind"], facts["tiles"]) == (maps[0], len(values))
    assert facts["value_range"] == pytest.approx([values.min(), values.max()])
    handed = json.loads((run.folder.handoff(name) / "package.json").read_text())
    assert list(handed["maps"]) == ["probability", *(m for m in maps if m != "probability")]  # lesions come from it
    collection = RunCollection(run)
    detail = collection.detail(name)
    assert [layer.kind for layer in detail.layers if layer.look.from_model] == list(maps)
    assert [layer.look.key for layer in detail.layers][: len(maps)] == list(range(2, 2 + len(maps)))
    assert (detail.layers[0].values > 0).sum() == len(values)
    shown = next(column for column in detail.tiles.shown if column.name == maps[0])
    assert (shown.title, shown.shown_as) == (SCORE_MAPS[maps[0]].title, "rank")
    assert {f"{name}_{kind}.png" for kind in maps} <= {d.name for d in collection.downloads(name)}
    collection.close()


def test_titles_say_which_maps_cannot_be_compared_between_slides():
    assert SCORE_MAPS["probability"].picture_title == "Tumour probability map"
    assert SCORE_MAPS["attention"].picture_title == "Attention map, relative within this slide"
    assert replace(SCORE_MAPS["attention"], label="").picture_title == "attention map, relative within this slide"
