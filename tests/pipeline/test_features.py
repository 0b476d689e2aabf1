"""Features of a cohort: stored once, learned from, handed on, and what goes wrong stays with its slide."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.test_export_tiles import flat, invoke
from tests.small_cohort import write_nodes
from wsi_ips.config import load_recipe
from wsi_ips.errors import CheckpointError, FeaturesError, RecipeError, ScoresError
from wsi_ips.inference.slide_scores import read_scores
from wsi_ips.pipeline import Run, run_pipeline, run_stage
from wsi_ips.pipeline.feature_source import feature_source
from wsi_ips.pipeline.stages import store_features, train
from wsi_ips.tiles.feature_store import open_features
from wsi_ips.tiles.store import read_index
from wsi_ips.training.model_building import frozen_encoder

ON_FEATURES = {"model.input": "features"}


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tiled slides with features in a folder, of which tests make copies; work is done in this process."""
    folder = tmp_path_factory.mktemp("features")
    write_nodes(folder, compute={"workers": 0, "device": "cpu"})
    run_stage(load_recipe(folder / "recipe.yaml", ON_FEATURES), "features")
    return folder


@pytest.fixture
def cohort(tiled: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiled, tmp_path / "copy")
    return tmp_path / "copy"


def of(cohort: Path, **overrides: object):
    named = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_recipe(cohort / "recipe.yaml", ON_FEATURES | named)


def written(cohort: Path) -> dict[str, int]:
    return {p.name: (p / "zarr.json").stat().st_mtime_ns for p in (cohort / "out" / "features.zarr").glob("*/s*")}


def blocks(entry: Path) -> list[Path]:
    return sorted(path for path in entry.rglob("*") if path.is_file() and path.name != "zarr.json")


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9] + bytes([path.read_bytes()[-9] ^ 4]) + path.read_bytes()[-8:])


def test_damaged_scores_and_features_are_refused_and_made_again(cohort):
    run = run_pipeline(of(cohort)).states
    out = cohort / "out"
    (encoder,) = (out / "features.zarr").iterdir()
    before = read_scores(out / "scores.zarr", "s5"), (out / "predictions.csv").read_text().split(",seconds")[0]
    for damage in (Path.unlink, flip):
        damage(blocks(out / "scores.zarr" / "s5" / "tile_probability")[0])
        with pytest.raises(ScoresError, match=r"scores of slide s5 .*damaged.*run `wsi-ips predict`"):
            run_stage(of(cohort), "heatmap")
        assert run_stage(of(cohort), "predict").states["s5"].state == "ok"
        again = read_scores(out / "scores.zarr", "s5")
        np.testing.assert_array_equal(again.tile_probability, before[0].tile_probability)
        assert again.probabilities == before[0].probabilities
    values = open_features(encoder, "s1").rows(np.arange(5))
    for number, damage in enumerate((Path.unlink, flip)):
        damage(blocks(encoder / "s1")[0])
        with pytest.raises(FeaturesError, match=r"features of slide s1 .*damaged.*run `wsi-ips run --until features`"):
            open_features(encoder, "s1").rows(np.arange(5))
        if number:  # noticed where it is read: training goes on without the slide, and the next call has it again
            states = run_stage(of(cohort, training__epochs=1, training__max_missing_share=0.5), "train").states
            assert (states["s1"].state, states["s1"].stage) == ("failed", "train")
        run_stage(of(cohort), "features")
        np.testing.assert_array_equal(open_features(encoder, "s1").rows(np.arange(5)), values)
    assert {row.state for row in run} == {"ok"}


def test_a_run_on_features_comes_to_labels_maps_and_a_report(cohort):
    before = written(cohort)
    outcome = run_pipeline(of(cohort))
    assert outcome.failed == 0
    assert written(cohort) == before  # those of the fixture are used, not made again
    assert (cohort / "out" / "report" / "index.html").is_file()
    assert (cohort / "out" / "heatmaps" / "s5_probability.png").is_file()
    on_features = pd.read_csv(cohort / "out" / "predictions.csv")
    assert list(on_features["slide_id"]) == ["s5", "s6"]
    assert run_pipeline(of(cohort)).worked is False  # done means fingerprint equal
    # The checkpoint holds the whole network: it takes pixels where nobody stored features.
    shutil.rmtree(cohort / "out" / "features.zarr")
    shutil.rmtree(cohort / "out" / "scores.zarr")
    run_stage(load_recipe(cohort / "recipe.yaml", {"predict.checkpoint": "out/model"}), "predict")
    on_pixels = pd.read_csv(cohort / "out" / "predictions.csv")
    np.testing.assert_allclose(on_features["probability_tumor"], on_pixels["probability_tumor"], atol=2e-2)


def test_features_are_those_of_the_encoder_and_in_the_order_of_the_tiles(cohort):
    with Run.open(of(cohort)) as run:
        record = run.slides.records[2]
        source = feature_source(run.features, run.slides)
        tiles = source.tiles(record)
        encoder = frozen_encoder(run.recipe.model, seed=run.recipe.seed, patch_px=run.recipe.tiles.patch_px)
        pixels = torch.from_numpy(run.slides.tiles(record).only(np.array([7, 0, 3], np.int32)).read())
    with torch.inference_mode():
        expected = encoder.embed_raw(pixels.permute(0, 3, 1, 2).float() / 255).numpy()
    found = tiles.features.rows(np.array([7, 0, 3])).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    assert not np.allclose(found[0], found[1], atol=1e-3)


def test_only_what_changed_is_computed_again(cohort):
    before = written(cohort)
    with Run.open(of(cohort)) as run:
        assert store_features(run) == 0
        shutil.rmtree(feature_source(run.features, run.slides).folder / "s3")
        assert store_features(run) == 1
    after = written(cohort)
    assert {name for name in before if after[name] != before[name]} == {"s3"}
    with Run.open(of(cohort, seed=1)) as run:  # another untrained encoder: features of its own, beside
        assert store_features(run) == 6
    assert len(list((cohort / "out" / "features.zarr").iterdir())) == 2
    with Run.open(of(cohort, tiles__patch_px=32)) as run:
        run_stage(run.recipe, "tile")
    with Run.open(of(cohort, tiles__patch_px=32)) as run:
        assert store_features(run) == 6  # of other tiles


def test_a_slide_that_cannot_be_embedded_fails_alone_and_is_left_out(cohort):
    shutil.rmtree(next((cohort / "out" / "features.zarr").iterdir()) / "s2")
    (cohort / "slides" / "file2.tif").rename(cohort / "slides" / "gone.tif")
    result = invoke("run", cohort / "recipe.yaml", "s2", "--until", "features", "--set", "model.input=features")
    assert result.exit_code == 3, result.output
    state = next(s for s in Run.open(of(cohort)).states if s.slide_id == "s2")
    assert state.state == "failed"
    run = Run.open(of(cohort, training__max_missing_share=0.5))
    assert train(run)
    (cohort / "slides" / "gone.tif").rename(cohort / "slides" / "file2.tif")
    result = invoke("run", cohort / "recipe.yaml", "--until", "features", "--set", "model.input=features")
    assert result.exit_code == 0, result.output
    assert next(s for s in Run.open(of(cohort)).states if s.slide_id == "s2").state == "ok"


def test_processes_write_the_same_features_and_keep_their_encoder(cohort):
    """The way of a cluster: another process builds the encoder from the recipe."""
    folder = next((cohort / "out" / "features.zarr").iterdir())
    before = {f"s{n}": open_features(folder, f"s{n}").rows(np.arange(20)) for n in (1, 2)}
    shutil.rmtree(folder)
    run = run_stage(of(cohort, compute__workers=1), "features", slides=["s1", "s2"])
    assert {s.state for s in run.states} == {"ok"}
    for name, table in before.items():
        np.testing.assert_allclose(
            open_features(folder, name).rows(np.arange(20)).astype(float), table.astype(float), rtol=2e-3, atol=2e-3
        )


def test_end_to_end_starts_from_features(cohort):
    """The pooling of the first step is that of the features model; the encoder then learns too."""
    run_stage(of(cohort), "train")
    shutil.copytree(cohort / "out" / "model", cohort / "first")
    tiny = {"training.learning_rate": 1e-9, "training.epochs": 1, "training.start_steps": 0}
    run_stage(load_recipe(cohort / "recipe.yaml", {"model.start": "first", **tiny}), "train")
    first, second = (load_file(cohort / name / "model.safetensors") for name in ("first", "out/model"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-6)
    run_stage(load_recipe(cohort / "recipe.yaml", {"model.start": "first", "training.epochs": 1}), "train")
    third = load_file(cohort / "out/model/model.safetensors")
    assert any(not torch.equal(third[n], t) for n, t in first.items() if n.startswith("encoder.trunk."))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"model.start": "nowhere"}, CheckpointError, "there is none"),
        ({"model.lora_rank": 4}, RecipeError, "uses the encoder unchanged; leave `lora_rank` out"),
        ({"model.freeze": 2}, RecipeError, "leave `freeze` out"),
        ({"training.augment": {"turns": True}}, RecipeError, "`training.augment` changes pixels"),
        ({"compute.scan_backend": "int8"}, RecipeError, "`compute.scan_backend: int8` needs pixels"),
        ({"model.input": "pixels", "features.imported": "x"}, RecipeError, "is for `model.input: features`"),
        ({"model.encoder": "nobody"}, RecipeError, "no encoder `nobody`"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(cohort, overrides, error, message):
    with pytest.raises(error, match=message):
        run_stage(load_recipe(cohort / "recipe.yaml", ON_FEATURES | overrides), "train")


def test_names_of_no_slide_are_refused(cohort):
    result = invoke("run", cohort / "recipe.yaml", "nobody", "--until", "features")
    assert result.exit_code == 2
    assert "no slide_id nobody" in flat(result.output)


@pytest.mark.parametrize("kind", ["clam", "trident"])
def test_features_go_to_another_tool_and_come_back(cohort, kind):
    result = invoke(
        "export", "tiles", cohort / "recipe.yaml", "--format", kind, "--output", cohort / "there", "--features"
    )
    assert result.exit_code == 0, result.output
    folder = next((cohort / "out" / "features.zarr").iterdir())
    ours = open_features(folder, "s4").rows(np.arange(12)).astype(np.float32)
    if kind == "clam":
        tensor = torch.load(cohort / "there" / "pt_files" / "file4.pt", weights_only=True)
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(tensor[:12].numpy(), ours)
    back = ("--features-from", cohort / "there", "--set", "output=back")
    result = invoke("tile", cohort / "recipe.yaml", "--from", cohort / "there", *back)
    assert result.exit_code == 0, result.output
    stored = open_features(cohort / "back" / "features.zarr" / "imported", "s4")
    np.testing.assert_array_equal(stored.rows(np.arange(12)).astype(np.float32), ours)
    assert stored.encoder == ("imported:unnamed" if kind == "clam" else f"imported:{folder.name}")


def test_a_model_of_imported_features_runs_to_the_end_and_says_what_it_needs(cohort):
    invoke("export", "tiles", cohort / "recipe.yaml", "--format", "clam", "--output", cohort / "clam", "--features")
    shutil.rmtree(cohort / "clam" / "h5_files")  # bare tensors are enough with the coordinates
    recipe = of(cohort, output="foreign", tiles__imported="clam/patches", features__imported="clam", model__projector=8)
    assert run_pipeline(recipe).failed == 0
    assert len(pd.read_csv(cohort / "foreign" / "predictions.csv")) == 2
    card = json.loads((cohort / "foreign" / "model" / "model.json").read_text())
    assert card["encoder"]["name"] == "imported:unnamed"
    assert card["encoder"]["features"] == 64
    assert run_pipeline(recipe).worked is False
    torch.save(torch.zeros(1000, 64), cohort / "clam" / "pt_files" / "file5.pt")
    outcome = run_pipeline(recipe)
    assert outcome.failed == 1
    state = next(s for s in outcome.states if s.state == "failed")
    assert state.slide_id == "s5"
    assert "1000 rows of features for" in state.reason
    override = {"predict.checkpoint": "foreign/model", "output": "other"}
    run = run_stage(load_recipe(cohort / "recipe.yaml", override), "predict", slides=["s6"])
    assert "takes no pixels; set `features.imported`" in next(s.reason for s in run.states if s.slide_id == "s6")


def test_a_file_that_contradicts_fails_its_slide_alone(cohort):
    invoke("export", "tiles", cohort / "recipe.yaml", "--format", "trident", "--output", cohort / "t", "--features")
    folder = next((cohort / "t").glob("*/features_*"))
    with h5py.File(folder / "file3.h5", "r+") as file:
        file["coords"].attrs["level0_width"] = 9999
    (folder / "file4.h5").unlink()
    result = invoke(
        "tile", cohort / "recipe.yaml", "--from", cohort / "t", "--features-from", folder, "--set", "output=back"
    )
    assert result.exit_code == 3
    text = flat(result.output)
    assert "s3: failed:" in text
    assert "9999 x 600 px" in text
    assert "s4: failed:" in text
    assert "no feature file of it" in text
    assert "4 imported, 2 failed" in text


def test_real_feature_files_of_clam_and_trident(real_data, tmp_path):
    """Their values are random numbers; what counts is that each finds its tile."""
    slide = real_data / "slides" / "CMU-1-Small-Region.svs"
    (tmp_path / "manifest.csv").write_text(f"slide_id,path\ncmu,{slide}\n")
    (tmp_path / "recipe.yaml").write_text(
        "output: out\nmanifest: manifest.csv\nmodel: {input: features}\ncompute: {workers: 0}\n"
    )
    peers = real_data / "peers"
    for tool, coords, features in (
        ("clam", "clam_run/CMU-1-Small-Region.h5", "clam_run/CMU-1-Small-Region_features.h5"),
        ("tensor", "clam_run/CMU-1-Small-Region.h5", "clam_run/CMU-1-Small-Region_features.pt"),
        (
            "trident",
            "trident_run/CMU-1-Small-Region_patches.h5",
            "trident_run/CMU-1-Small-Region_features_resnet18_random.h5",
        ),
    ):
        folder = tmp_path / tool
        folder.mkdir()
        shutil.copy(peers / features, folder / f"CMU-1-Small-Region{Path(features).suffix}")
        values = ["--set", f"output={tmp_path / f'out_{tool}'}"]
        result = invoke("tile", tmp_path / "recipe.yaml", "--from", peers / coords, "--features-from", folder, *values)
        assert result.exit_code == 0, result.output
        index = read_index(tmp_path / f"out_{tool}" / "tiles.zarr", "cmu")
        stored = open_features(tmp_path / f"out_{tool}" / "features.zarr" / "imported", "cmu")
        assert stored.tiles == len(index)
        reference = peers / (features if not features.endswith(".pt") else features.replace(".pt", ".h5"))
        with h5py.File(reference) as file:
            theirs = {tuple(c): v for c, v in zip(file["coords"][()].tolist(), file["features"][()], strict=True)}
        rows = stored.rows(np.arange(len(index))).astype(np.float32)
        for x, y, row in zip(index.x.tolist(), index.y.tolist(), rows, strict=True):
            np.testing.assert_allclose(row, theirs[x, y], rtol=1e-3, atol=1e-3)
        assert stored.encoder == ("imported:resnet18_random" if tool == "trident" else "imported:unnamed")
