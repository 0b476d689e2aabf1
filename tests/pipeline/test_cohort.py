"""The rows a recipe works on: from a folder, with a validation share, with labels that count as others."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.pyramids import write_pyramid
from tests.tissue.test_perceptual_hash import node
from wsi_ips.config import load_recipe
from wsi_ips.errors import ManifestError, RecipeError
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.pipeline.read_cohort import read_cohort


def recipe_of(folder: Path, **values: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output": "out", "manifest": "manifest.csv", **values}), encoding="utf-8")
    return path


def manifest_of(folder: Path, rows: list[dict[str, str]]) -> None:
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)


def cohort(count: int, **columns: object) -> list[dict[str, str]]:
    return [
        {"slide_id": f"s{k}", "path": f"s{k}.svs", "label": ("normal", "tumor")[k % 2], "split": "train"}
        | {name: str(value(k)) for name, value in columns.items()}  # type: ignore[operator]
        for k in range(count)
    ]


def test_a_folder_stands_for_its_slides(tmp_path):
    (tmp_path / "slides" / "deep").mkdir(parents=True)
    for number in range(2):
        write_pyramid(tmp_path / "slides" / "deep" / f"s{number}.tif", [node(number, (600, 840))], mpp=(4.0, 4.0))
    path = recipe_of(tmp_path, manifest="slides", tiles={"mpp": 8.0, "patch_px": 16}, tissue={"mpp": 8.0})
    run = run_stage(load_recipe(path), "tile")
    assert [s.state for s in run.states] == ["ok", "ok"]
    assert run.recipe.manifest == load_recipe(path).output / "manifest.csv"
    write_pyramid(tmp_path / "slides" / "s9.tif", [node(9, (600, 840))], mpp=(4.0, 4.0))
    assert [r.slide_id for r in Run.open(load_recipe(path)).slides.records] == ["s0", "s1", "s9"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="no slide in it"):
        read_cohort(load_recipe(path, {"manifest": str(tmp_path / "empty")}))


@pytest.mark.parametrize("seed", range(4))
def test_a_share_of_the_training_slides_validates(tmp_path, seed):
    manifest_of(tmp_path, cohort(40, patient_id=lambda k: f"p{k // 2}"))
    records = read_cohort(load_recipe(recipe_of(tmp_path, seed=seed, split={"val_share": 0.2}))).records
    held = [r for r in records if r.split == "val"]
    assert len(held) == 8
    assert sum(r.label == "tumor" for r in held) == 4
    patients = {split: {r.patient_id for r in records if r.split == split} for split in ("train", "val")}
    assert patients["train"].isdisjoint(patients["val"])
    again = read_cohort(load_recipe(recipe_of(tmp_path, seed=seed, split={"val_share": 0.2}))).records
    assert records == again


def test_slides_that_validate_already_are_left_alone(tmp_path):
    rows = cohort(10)
    rows[0]["split"] = "val"
    manifest_of(tmp_path, rows)
    records = read_cohort(load_recipe(recipe_of(tmp_path, split={"val_share": 0.5}))).records
    assert [r.slide_id for r in records if r.split == "val"] == ["s0"]


def test_labels_count_as_others(tmp_path):
    names = ("negative", "itc", "micro", "macro", "tumor", "")
    rows = [{"slide_id": name or "none", "path": f"{name}.svs", "label": name} for name in names]
    manifest_of(tmp_path, rows)
    labels = {
        "classes": ["normal", "tumor"],
        "map": {"negative": "normal", "itc": None, "micro": "tumor", "macro": "tumor"},
    }
    run = Run.open(load_recipe(recipe_of(tmp_path, labels=labels)))
    assert [run.slides.target(r) for r in run.slides.records] == [0, None, 1, 1, 1, None]


def test_the_same_column_may_be_asked_twice(tmp_path):
    rows = [{"slide_id": name, "path": f"{name}.svs", "label": name} for name in ("negative", "macro")]
    manifest_of(tmp_path, rows)
    labels = {
        "map": {"negative": "normal", "macro": "tumor"},
        "further": {"node": {"column": "label", "classes": ["negative", "itc", "micro", "macro"]}},
    }
    run = Run.open(load_recipe(recipe_of(tmp_path, labels=labels)))
    assert [run.slides.targets[r.slide_id] for r in run.slides.records] == [(0, 0), (1, 3)]


def test_a_label_cannot_count_as_what_is_no_class(tmp_path):
    with pytest.raises(RecipeError, match=r"`map`: micro: tumour is not a class; the classes are normal, tumor"):
        load_recipe(recipe_of(tmp_path, labels={"map": {"micro": "tumour"}}))
