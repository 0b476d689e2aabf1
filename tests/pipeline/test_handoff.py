"""The stage that hands over: real slides, from stored scores to files, again and again."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import yaml

from tests.small_cohort import SLIDES, SMALL
from wsi_ips.annotations import read_asap
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.inference.slide_scores import SlideScores, write_scores
from wsi_ips.model.checkpoint import build_net, save_checkpoint
from wsi_ips.model.checkpoint_card import EncoderSpec, ModelCard, checkpoint_fingerprint
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.pipeline.demo_slides import make_slides

FILES = {
    "_probability.png",
    "_probability.json",
    "_attention.png",
    "_attention.json",
    "_maps.ome.tif",
    ".geojson.gz",
    "_lesions.xml",
    "_lesions.csv",
    "_gallery.png",
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides, one with tumour, tiled and scored by their truth, as after ``wsi-ips predict``."""
    folder = tmp_path_factory.mktemp("scored")
    make_slides(folder / "cohort", replace(SLIDES, slides=2), seed=5)
    changes = {"heatmap": {"splits": ["train", "test"]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    recipe = load_recipe(folder / "recipe.yaml")
    run_stage(recipe, "tile")
    task = recipe.labels.tasks[0]
    card = ModelCard(
        model_id="net-0123",
        tasks=(task,),
        encoder=EncoderSpec("resnet18-1", "group", False),
        heads=1,
        key_width=8,
        dropout=0.0,
        memory_size=4,
        patch_mpp=2.0,
        patch_px=64,
        fingerprint="f",
    )
    with Run.open(recipe) as run:
        save_checkpoint(run.folder.model, build_net(card), card)
        for record in run.slides.records:
            write_scores(run.folder.scores, truth_as_scores(run, record))
    return folder


def truth_as_scores(run: Run, record) -> SlideScores:
    index = run.slides.index(record)
    positive = np.zeros(len(index), np.float32)
    if index.tumour_fraction is not None:
        positive = np.where(index.tumour_fraction >= 0.5, 0.9, 0.02).astype(np.float32)
    return SlideScores(
        slide_id=record.slide_id,
        attention_logits=np.arange(len(index), dtype=np.float32).reshape(-1, 1, 1),
        tile_probability=np.stack([1 - positive, positive], axis=1),
        kept=np.arange(4, dtype=np.int32),
        kept_embeddings=np.zeros((4, 64), np.float32),
        tasks=(run.recipe.labels.tasks[0],),
        probabilities=((1 - float(positive.max()), float(positive.max())),),
        seconds=1.0,
        fingerprint=run.predictions.fingerprint(record, checkpoint_fingerprint(run.folder.model)),
    )


@pytest.fixture
def folder(scored: Path, tmp_path: Path) -> Path:
    shutil.copytree(scored, tmp_path / "copy")
    return tmp_path / "copy"


def recipe_of(folder: Path, **changes: object) -> Recipe:
    return load_recipe(folder / "recipe.yaml", changes)


def made(folder: Path) -> dict[str, int]:
    """When each package was made."""
    return {p.parent.name: p.stat().st_mtime_ns for p in (folder / "out" / "handoff").glob("*/package.json")}


def test_each_slide_has_its_package_and_the_lesion_is_that_of_the_annotation(folder: Path) -> None:
    run = run_stage(recipe_of(folder), "heatmap")
    assert {state.state for state in run.states} == {"ok"}
    truth = {record.slide_id: record.annotation for record in run.slides.records}
    with_lesion = 0
    for slide_id, annotation in truth.items():
        package = folder / "out" / "handoff" / slide_id
        facts = json.loads((package / "package.json").read_text())
        assert {p.name for p in package.iterdir()} == {slide_id + ending for ending in FILES} | {"package.json"}
        assert {entry["name"] for entry in facts["files"]} == {slide_id + ending for ending in FILES}
        checked = {entry["name"].removeprefix(slide_id): entry["check"] for entry in facts["files"] if "check" in entry}
        assert set(checked) == {"_probability.png", "_attention.png", "_maps.ome.tif", ".geojson.gz", "_lesions.xml"}
        assert checked["_probability.png"]["correlation_with_tiles_read_again"] > 0.8
        assert 0 <= facts["not_analysed_mm2"] < facts["tissue_mm2"]
        found = run.states[slide_id].not_analysed
        sidecar = json.loads((package / f"{slide_id}_probability.json").read_text())
        for told in (facts, sidecar):
            assert told.items() >= found.facts.items()
        features = json.loads(gzip.decompress((package / f"{slide_id}.geojson.gz").read_bytes()))["features"]
        unseen = [f["properties"] for f in features if f["properties"].get("name") == "Not analysed"]
        assert [u["measurements"]["area mm²"] for u in unseen] == [pytest.approx(found.area_mm2)]
        wanted = read_asap(annotation).tumour if annotation else shapely.Polygon()
        found = read_asap(package / f"{slide_id}_lesions.xml").tumour
        tile_px0 = 64 * 2.0 / 0.5
        if wanted.is_empty:
            assert found.is_empty
            continue
        with_lesion += 1
        assert found.centroid.distance(wanted.centroid) < tile_px0 / 2
        assert shapely.intersection(found, wanted).area > 0.7 * shapely.union(found, wanted).area
        features = json.loads(gzip.decompress((package / f"{slide_id}.geojson.gz").read_bytes()))["features"]
        assert sum(f["properties"].get("name", "").startswith("Lesion") for f in features) == facts["lesions"]
    assert with_lesion == 1
    table = pd.read_csv(folder / "out" / "handoff" / "lesions.csv")
    assert len(table) >= 1
    assert len(set(table["slide_id"])) == 1


def test_what_is_up_to_date_is_left_and_what_changed_is_made_anew(folder: Path) -> None:
    run_stage(recipe_of(folder), "heatmap")
    first = made(folder)
    run_stage(recipe_of(folder), "heatmap")
    assert made(folder) == first
    run_stage(recipe_of(folder, **{"handoff.threshold": 0.95}), "heatmap")
    second = made(folder)
    assert all(second[name] > first[name] for name in first)
    assert len(pd.read_csv(folder / "out" / "handoff" / "lesions.csv")) == 0
    slide = sorted(first)[0]
    (folder / "out" / "handoff" / slide / f"{slide}_gallery.png").unlink()
    run_stage(recipe_of(folder, **{"handoff.threshold": 0.95}), "heatmap")
    third = made(folder)
    assert [name for name in first if third[name] > second[name]] == [slide]


def test_formats_are_chosen_and_none_makes_no_package(folder: Path) -> None:
    run_stage(recipe_of(folder, **{"handoff.formats": []}), "heatmap")
    assert not (folder / "out" / "handoff").exists()
    run = run_stage(recipe_of(folder, **{"handoff.formats": ["asap"]}), "heatmap")
    slide = run.slides.records[0].slide_id
    package = folder / "out" / "handoff" / slide
    assert {p.name for p in package.iterdir()} == {f"{slide}_lesions.xml", "package.json"}


def test_a_slide_that_cannot_be_read_fails_and_the_other_is_handed_over(folder: Path) -> None:
    recipe = recipe_of(folder)
    run_stage(recipe_of(folder, **{"handoff.formats": []}), "heatmap")  # pictures are there
    bad, good = (record.slide_id for record in Run.open(recipe).slides.records)
    path = next((folder / "cohort" / "slides").glob(f"{bad}.*"))
    whole = path.read_bytes()
    spoiled = bytearray(whole)
    spoiled[16:-20_000] = bytes(len(whole) - 20_016)
    path.write_bytes(bytes(spoiled))
    run = run_stage(recipe, "heatmap")
    states = {state.slide_id: state for state in run.states}
    assert (states[bad].state, states[bad].stage) == ("failed", "handoff")
    assert bad in states[bad].reason
    assert states[good].state == "ok"
    assert set(made(folder)) == {good}
    path.write_bytes(whole)
    assert run_stage(recipe, "heatmap").states.count("failed") == 0
    assert set(made(folder)) == {bad, good}


def test_without_an_outline_of_the_tissue_the_package_says_what_tiling_measured(folder: Path) -> None:
    for outline in (folder / "out" / "tissue").glob("*.geojson"):
        outline.unlink()
    run = run_stage(recipe_of(folder), "heatmap")
    facts = json.loads((folder / "out" / "handoff" / run.slides.records[0].slide_id / "package.json").read_text())
    assert facts["tissue_mm2"] is None
    assert facts.items() >= run.states[run.slides.records[0].slide_id].not_analysed.facts.items()
