"""Outlines in the manifest: what a training makes of them, and what it says of those it cannot use."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.pipeline.test_run import edit_manifest, recipe_of, write_recipe
from tests.small_cohort import SMALL
from wsi_ips.annotations import write_asap
from wsi_ips.errors import TrainingError
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.pipeline.explain import explain
from wsi_ips.pipeline.slide_outlines import with_truth
from wsi_ips.training.settings import LabelledSlide

OUTLINES = {"start": "outlines", "start_steps": 2, "epochs": 3, "batch_slides": 2}


class Notes:
    """Keeps the messages of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def stage(self, *_):
        yield lambda _: None

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that starts on outlines, and the tiles of its eight slides, half of them for training."""
    folder = tmp_path_factory.mktemp("outlines")
    write_recipe(folder, training=OUTLINES)
    run_stage(recipe_of(folder), "tile")
    return folder


@pytest.fixture
def folder(tiled: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiled, tmp_path / "copy")
    return tmp_path / "copy"


def tumours(folder: Path, split: str = "train") -> list[str]:
    table = edit_manifest(folder)
    return table[(table["split"] == split) & (table["label"] == "tumor")]["slide_id"].tolist()


def trained(folder: Path) -> list[str]:
    """Train; the messages."""
    notes = Notes()
    run_stage(recipe_of(folder), "train", notes)
    return notes.lines


def truths(folder: Path) -> tuple[dict[str, LabelledSlide], list[str]]:
    notes: list[str] = []
    with Run.open(recipe_of(folder)) as run:
        records = [r for r in run.slides.records if r.split == "train"]
        slides = [LabelledSlide(run.slides.tiles(r), run.slides.targets[r.slide_id]) for r in records]
        found = with_truth(slides, records, run.recipe.labels.tasks, notes.append)
    return {slide.slide_id: slide for slide in found}, notes


def test_training_learns_from_the_outlines_of_one_slide_and_says_so(folder):
    outlined, other = tumours(folder)
    edit_manifest(folder, annotation={other: ""})
    lines = trained(folder)
    assert any(line.startswith("outlines on 1 of 4 training slides: ") for line in lines)
    assert (folder / "out" / "model" / "model.json").exists()
    slides, _ = truths(folder)
    fraction = slides[outlined].tiles.index.tumour_fraction
    np.testing.assert_allclose(slides[outlined].truth.of(np.arange(len(fraction)))[:, 1], fraction, atol=1e-6)
    assert slides[other].truth is None
    assert sum(slide.truth is not None for slide in slides.values()) == 3


def test_partial_outlines_are_known_inside_only_and_train_another_model(folder):
    run_stage(recipe_of(folder), "train")
    before = (folder / "out" / "model" / "model.json").read_text()
    name, _ = tumours(folder)
    edit_manifest(folder, outlines=dict.fromkeys(tumours(folder), ""))
    edit_manifest(folder, outlines={name: "partial"})
    slides, _ = truths(folder)
    known = ~np.isnan(slides[name].truth.of(np.arange(len(slides[name].tiles.index)))).any(1)
    np.testing.assert_array_equal(known, slides[name].tiles.index.tumour_fraction > 0)
    run_stage(recipe_of(folder), "train")
    assert (folder / "out" / "model" / "model.json").read_text() != before


def test_outlines_of_other_splits_only_are_refused_with_the_column_to_fill_in(folder):
    edit_manifest(folder, annotation=dict.fromkeys(tumours(folder), ""))
    with pytest.raises(TrainingError, match=r"none of the 4 has one .* column `annotation` .* split `train`"):
        trained(folder)


def test_outlines_of_another_slide_lie_in_no_tile_and_are_named(folder):
    name, other = tumours(folder)
    far = np.array([[1, 1], [60, 1], [60, 40]])  # a corner of the glass
    write_asap(folder / "cohort" / "annotations" / f"{name}.xml", [far])
    strict = run_stage(recipe_of(folder), "tile").states[name]
    assert (strict.state, "lie in no tile" in strict.reason) == ("failed", True)
    tiles = SMALL["tiles"] | {"accept_lost_tumour": True}
    write_recipe(folder, training=OUTLINES, tiles=tiles)
    assert any("lie in no tile" in line and name in line and other not in line for line in trained(folder))
    slides, _ = truths(folder)
    assert slides[name].truth is None
    assert slides[other].truth is not None


def test_outlines_of_unknown_classes_are_listed_leave_the_slide_weak_and_a_key_names_them(folder):
    name, other = tumours(folder)
    path = folder / "cohort" / "annotations" / f"{name}.xml"
    path.write_text(path.read_text().replace('PartOfGroup="Tumor"', 'PartOfGroup="DCIS"'))
    run_stage(recipe_of(folder), "tile")
    with Run.open(recipe_of(folder)) as run:
        remark = run.states[name].remarks
        record, said = run.slides.named([name])[0], dict(explain(run.slides, run.states, name))
        assert run.slides.index(record).tumour_fraction is None  # not healthy: unknown
    assert "dcis (" in remark
    assert "tiles.annotation_classes" in remark
    assert said["remarks"] == remark
    slides, notes = truths(folder)
    assert slides[name].truth is None
    assert slides[other].truth is not None
    assert any("classes that are not known" in note and "dcis" in note and name in note for note in notes)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("tiles:\n", "tiles:\n  annotation_classes: {DCIS: tumor}\n"))
    run_stage(recipe_of(folder), "tile")
    with Run.open(recipe_of(folder)) as run:
        assert "dcis" not in run.states[name].remarks
        assert (run.slides.index(record).tumour_fraction > 0).any()


def test_a_slide_without_a_finding_that_has_outlines_is_named(folder):
    name, _ = tumours(folder)
    edit_manifest(folder, label={name: "normal"})
    slides, notes = truths(folder)
    assert any("labelled as without a finding" in note and name in note for note in notes)
    inside = slides[name].truth.tiles
    assert np.isnan(slides[name].truth.of(inside)).all()


def test_a_missing_outline_file_fails_its_slide_with_the_column_to_correct(folder):
    name, _ = tumours(folder)
    (folder / "cohort" / "annotations" / f"{name}.xml").unlink()
    run_stage(recipe_of(folder), "tile")
    with Run.open(recipe_of(folder)) as run:
        state = run.states[name]
    assert state.state == "failed"
    assert "no such file; correct column `annotation` of the manifest" in state.reason


def test_outlines_may_be_of_classes_of_the_recipe_that_are_no_tumour(folder):
    """The tile stage says that no tumour is outlined; training learns the class that the group names."""
    name, _ = tumours(folder)
    path = folder / "cohort" / "annotations" / f"{name}.xml"
    path.write_text(path.read_text().replace("Tumor", "Atypia"))
    table = edit_manifest(folder)
    edit_manifest(folder, label=dict.fromkeys(table[table["label"] == "tumor"]["slide_id"], "atypia"))
    write_recipe(folder, training=OUTLINES, labels={"classes": ["normal", "atypia"]})
    lines = trained(folder)
    assert any(line.startswith("outlines on 2 of 4 training slides: ") for line in lines)
    with Run.open(recipe_of(folder)) as run:
        assert run.states[name].state == "ok"
        assert "atypia" in run.states[name].remarks
        assert run.slides.index(next(r for r in run.slides.records if r.slide_id == name)).tumour_fraction is None
