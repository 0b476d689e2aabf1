"""Splits on real files: copies and look-alikes stay together, the recipe uses them, leakage stops the training."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tests.pyramids import write_pyramid
from tests.small_cohort import SMALL
from tests.tissue.test_perceptual_hash import node
from wsi_ips.cli import app
from wsi_ips.config import load_recipe
from wsi_ips.errors import ManifestError, RecipeError
from wsi_ips.manifest.make_splits import SplitPlan
from wsi_ips.manifest.splits import Splits, read_splits, write_splits
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.pipeline.split_cohort import require_no_leak, split_cohort


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})


def slide(path: Path, seed: int, *, turn: int = 0) -> Path:
    pixels = np.ascontiguousarray(np.rot90(node(seed, (600, 840)), turn))
    return write_pyramid(path, [pixels], mpp=(4.0, 4.0))


def refuse_leaks(run: Run) -> None:
    require_no_leak(run.slides, run.states, run.recipe.split.allow)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """16 slides of 12 patients at three centres.

    Slide 14 is a copy of slide 0, slide 15 is slide 1 turned and mirrored.
    """
    folder = tmp_path_factory.mktemp("cohort")
    rows = []
    for number in range(14):
        slide(folder / f"s{number}.tif", number)
        patient = f"p{min(number, 11)}"
        rows.append([f"s{number}", f"s{number}.tif", ("normal", "tumor")[number % 2], patient, f"centre{number % 3}"])
    shutil.copy(folder / "s0.tif", folder / "s14.tif")
    slide(folder / "s15.tif", 1, turn=1)
    rows += [["s14", "s14.tif", "normal", "p20", "centre0"], ["s15", "s15.tif", "tumor", "", "centre1"]]
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["slide_id", "path", "label", "patient_id", "centre"], *rows])
    return folder


@pytest.mark.parametrize("seed", range(6))
def test_patients_copies_and_look_alikes_are_in_one_part(cohort, seed):
    outcome = split_cohort(cohort / "manifest.csv", SplitPlan(fractions=(0.5, 0.1, 0.4), seed=seed))
    part = outcome.splits.folds[0]
    assert part["s0"] == part["s14"]
    assert part["s1"] == part["s15"]
    assert part["s11"] == part["s12"] == part["s13"]
    assert {(k.kind, k.first, k.second) for k in outcome.related} == {
        ("content", "s0", "s14"),
        ("thumbnail", "s1", "s15"),
    }
    assert outcome.without_patient == 1


def test_without_a_look_only_patients_are_compared(cohort):
    outcome = split_cohort(cohort / "manifest.csv", SplitPlan(), look=False)
    assert outcome.related == ()


def test_the_command_writes_what_the_recipe_reads(cohort, tmp_path):
    result = invoke("split", cohort / "manifest.csv", "--folds", 3, "--output", tmp_path / "splits.json", "--seed", 4)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "kept together: s0 and s14 have the same content" in text
    splits = read_splits(tmp_path / "splits.json")
    assert splits.hash in text
    recipe = {"output": "out", "manifest": str(cohort / "manifest.csv"), "split": {"file": "splits.json", "fold": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run = Run.open(load_recipe(tmp_path / "recipe.yaml"))
    assert {r.slide_id: r.split for r in run.slides.records} == dict(splits.folds[2])
    with pytest.raises(RecipeError, match=r"`split.fold`: 3, but .* holds 3 \(from 0\)"):
        Run.open(load_recipe(tmp_path / "recipe.yaml", {"split.fold": 3}))


def test_by_centre_whole_centres_are_tested(cohort, tmp_path):
    arguments = ["split", cohort / "manifest.csv", "--by", "centre", "--no-look", "--output", tmp_path / "s.csv"]
    result = invoke(*arguments, "--holdout", "centre2")
    assert result.exit_code == 2  # patient p11 has slides at three centres
    assert "held out and in another: s11" in " ".join(result.output.split())
    lines = (cohort / "manifest.csv").read_text().replace("p11", "")
    (cohort / "loose.csv").write_text(lines)
    arguments[1] = cohort / "loose.csv"
    assert invoke(*arguments, "--holdout", "centre2").exit_code == 0
    tested = {name for name, part in read_splits(tmp_path / "s.csv").folds[0].items() if part == "test"}
    assert tested == {"s2", "s5", "s8", "s11"}
    assert invoke(*arguments[:2], "--holdout", "centre2").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fractions", "0.5,0.5"], "three numbers"),
        (["--fractions", "0,0.5,0.5"], "the first must be above 0"),
        (["--stratify", "grade"], "grade"),
        (["--output", "splits.txt", "--no-look"], ".json or .csv"),
        (["--folds", "40", "--no-look"], "40 folds of"),
    ],
)
def test_what_cannot_be_done_is_said(cohort, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("split", cohort / "manifest.csv", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_slides_that_cannot_be_opened_are_named_and_divided_all_the_same(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "c")
    (tmp_path / "c" / "s3.tif").write_bytes(b"damaged")
    outcome = split_cohort(tmp_path / "c" / "manifest.csv", SplitPlan())
    assert list(outcome.unseen) == ["s3"]
    assert "s3" in outcome.splits.folds[0]


def test_slides_without_a_label_are_in_no_part(cohort):
    text = (cohort / "manifest.csv").read_text().replace("s4.tif,normal", "s4.tif,")
    (cohort / "unlabelled.csv").write_text(text)
    outcome = split_cohort(cohort / "unlabelled.csv", SplitPlan(), look=False)
    assert outcome.left_out == ("s4",)
    assert "s4" not in outcome.splits.folds[0]


def recipe_of(cohort: Path, folder: Path, parts: dict[str, str], **split: object) -> Path:
    write_splits(folder / "splits.json", Splits((parts,)))
    values = SMALL | {
        "manifest": str(cohort / "manifest.csv"),
        "tissue": {"mpp": 8.0, "min_area_um2": 0},
        "tiles": {"mpp": 4.0, "patch_px": 32},
        "split": {"file": "splits.json", **split},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


LEAKY = {"s0": "train", "s1": "train", "s2": "train", "s3": "train", "s14": "test", "s15": "val", "s4": "test"}


def test_training_on_what_is_tested_is_refused_by_name(cohort, tmp_path):
    path = recipe_of(cohort, tmp_path, LEAKY)
    result = invoke("train", path)
    text = " ".join(result.output.split())
    assert result.exit_code == 2, result.output
    assert "s0 and s14 have the same content and are in train and test" in text
    assert "s1 and s15 look alike" in text
    assert "`split.allow: [content, thumbnail]`" in text
    assert not (tmp_path / "out" / "model").exists()


def test_what_the_recipe_allows_is_no_error(cohort, tmp_path):
    path = recipe_of(cohort, tmp_path, LEAKY, allow=["content", "thumbnail"])
    with run_stage(load_recipe(path), "tile") as run:
        refuse_leaks(run)
    with pytest.raises(ManifestError, match="s1 and s15 look alike"):
        refuse_leaks(Run.open(load_recipe(path, {"split.allow": ["content"]})))


def test_copies_within_one_part_are_no_leak(cohort, tmp_path):
    path = recipe_of(cohort, tmp_path, LEAKY | {"s14": "train", "s15": "train"})
    refuse_leaks(run_stage(load_recipe(path), "tile"))


def test_a_patient_in_two_parts_of_a_file_is_refused(cohort, tmp_path):
    path = recipe_of(cohort, tmp_path, {"s11": "train", "s12": "test"})
    with pytest.raises(ManifestError, match=r"s11 and s12 are of one patient \(p11\) and are in train and test"):
        Run.open(load_recipe(path))
    Run.open(load_recipe(path, {"split.allow": ["patient"]}))


def test_splits_of_another_cohort_are_refused(cohort, tmp_path):
    path = recipe_of(cohort, tmp_path, {"s0": "train", "who": "test"})
    with pytest.raises(ManifestError, match="1 slides that are in no row of the manifest: who"):
        Run.open(load_recipe(path))


def test_a_patient_in_two_splits_of_the_manifest_can_be_allowed(tmp_path):
    (tmp_path / "m.csv").write_text("slide_id,path,patient_id,split\na,a.svs,p,train\nb,b.svs,p,test\n")
    (tmp_path / "r.yaml").write_text("output: out\nmanifest: m.csv\n")
    with pytest.raises(ManifestError, match="patient `p`"):
        Run.open(load_recipe(tmp_path / "r.yaml"))
    Run.open(load_recipe(tmp_path / "r.yaml", {"split.allow": ["patient"]}))
