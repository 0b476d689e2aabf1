"""Recipes: what may stand in them, and what is said of what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field, ValidationError

from wsi_ips.config import AugmentSection, ComputeSection, Recipe, Section, TrainingSection, load_recipe, planned
from wsi_ips.config.key_types import ListedIn
from wsi_ips.config.keys import RecipeKey, recipe_keys
from wsi_ips.errors import RecipeError
from wsi_ips.registry import HOMES, Entry, Registry
from wsi_ips.training.settings import Settings
from wsi_ips.training.starts import RandomTiles

LEAST: dict[str, Any] = {"output": "runs/a", "manifest": "manifest.csv"}


def recipe(folder: Path, values: dict[str, Any], overrides: dict[str, Any] | None = None) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(LEAST | values), encoding="utf-8")
    return load_recipe(path, overrides)


def complaint(folder: Path, values: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(folder, values, overrides)
    return str(caught.value)


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pipelines"
    folder.mkdir()
    values = {
        "output": "../runs/a",
        "manifest": "/data/manifest.csv",
        "model": {"weights": "w.safetensors"},
        "predict": {"checkpoint": "../model"},
    }
    recipe(folder, values)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    loaded = load_recipe(Path("pipelines/recipe.yaml"), {"predict.checkpoint": "~/model"})
    assert loaded.output.resolve() == tmp_path / "runs" / "a"
    assert loaded.manifest == Path("/data/manifest.csv")
    assert loaded.model.weights == folder / "w.safetensors"
    assert loaded.predict.checkpoint == Path("/home/someone/model")
    assert load_recipe(Path("pipelines/recipe.yaml")).predict.checkpoint == folder / "../model"


def test_paths_left_out_stay_left_out(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, {})
    assert loaded.model.weights is None
    assert loaded.predict.checkpoint is None


def test_overrides_win_and_reach_sections_that_the_file_leaves_out(tmp_path: Path) -> None:
    overrides = {"training.epochs": 3, "tiles.mpp": 2, "heatmap.mpp": 8, "name": "b", "output": "elsewhere"}
    loaded = recipe(tmp_path, {"training": {"epochs": 9, "batch_slides": 2}}, overrides)
    assert (loaded.training.epochs, loaded.training.batch_slides) == (3, 2)
    assert loaded.tiles.mpp == 2.0
    assert loaded.heatmap.mpp == 8
    assert (loaded.name, loaded.output) == ("b", tmp_path / "elsewhere")


def test_what_is_assumed_of_the_background_is_told_with_the_key_that_changes_it(tmp_path: Path) -> None:
    further = {"grade": {"classes": ["G1", "G2"]}, "signs": {"classes": ["a"], "kind": "multi"}}
    loaded = recipe(tmp_path, {"labels": {"further": further}})
    assert [task.background for task in loaded.labels.tasks] == [True, False, True]
    normal, grade = loaded.labels.assumed
    assert normal.startswith("slides of `normal` are taken to hold nothing to find")
    assert normal.endswith("`labels.background: false`")
    assert grade.startswith("`G1` is taken as a finding")
    assert grade.endswith("`labels.further.grade.background: true`")
    stated = {"labels.background": False, "labels.further.grade.background": True}
    loaded = recipe(tmp_path, {"labels": {"further": further}}, stated)
    assert [task.background for task in loaded.labels.tasks] == [False, True, True]
    assert loaded.labels.assumed == ()


def test_an_override_through_a_value_is_refused(tmp_path: Path) -> None:
    assert "`seed` is not a section" in complaint(tmp_path, {"seed": 1}, {"seed.value": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"training_": {}}, "unknown key `training_`; did you mean `training`?"),
        ({"training": {"epoch": 3}}, "unknown key `training.epoch`; did you mean `epochs`?"),
        ({"compute": {"xyz": 3}}, "unknown key `compute.xyz`; known keys: device, readers, chunk_size"),
    ],
)
def test_an_unknown_key_gets_a_hint(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert message in complaint(tmp_path, values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tiles.mpp", 0),
        ("tiles.mpp", ".5 um"),
        ("tiles.patch_px", 7),
        ("tiles.patch_px", 64.5),
        ("tiles.stride_px", 0),
        ("tiles.min_tissue_fraction", 1.1),
        ("tiles.store", "npy"),
        ("tissue.min_area_um2", float("inf")),
        ("labels.classes", ["tumor"]),
        ("labels.classes", ["a", "a"]),
        ("model.memory_size", 0),
        ("training.tile_dropout", 1),
        ("training.learning_rate", float("nan")),
        ("training.max_missing_share", -0.1),
        ("predict.splits", ["all"]),
        ("handoff.threshold", 2),
        ("compute.readers", 0),
        ("name", "a/b"),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_named_by_its_key(tmp_path: Path, key: str, value: object) -> None:
    section = key.partition(".")[0]
    text = complaint(tmp_path, {}, {key: value})
    assert f"key `{section if key == 'labels.classes' else key}" in text
    assert "(got " in text
    assert "Value error" not in text


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = complaint(tmp_path, {"tiles": {"mpp": -1, "patch": 3}, "seed": "x"})
    assert all(key in text for key in ("`tiles.mpp`", "`tiles.patch`", "`seed`"))


def test_what_must_be_there_is_asked_for_without_printing_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("manifest: m.csv\nmodel:\n  heads: 2\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: key `output` is missing; add it$"):
        load_recipe(tmp_path / "recipe.yaml")


def test_the_stride_is_the_patch_unless_given(tmp_path: Path) -> None:
    assert recipe(tmp_path, {"tiles": {"patch_px": 64}}).tiles.stride == 64
    assert recipe(tmp_path, {"tiles": {"patch_px": 64, "stride_px": 32}}).tiles.stride == 32


def test_a_recipe_does_not_change_under_a_run(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, {})
    with pytest.raises(ValidationError):
        loaded.tiles.mpp = 1.0  # type: ignore[misc]


def test_every_field_of_every_section_says_what_it_is() -> None:
    sections = [Section]
    for section in sections:
        sections += section.__subclasses__()
        for name, field in section.model_fields.items():
            nested = isinstance(field.default, Section)
            assert nested or field.description, f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        ("model", "pooling", "there is no pooling `nope`; choose one of attention, abmil"),
        ("model", "encoder", "there is no encoder `nope`"),
        ("compute", "scan_backend", "there is no scan backend `nope`; choose one of auto, eager, compile, int8"),
    ],
)
def test_a_name_that_no_registry_lists_is_refused_with_the_choices(tmp_path: Path, section, key, said) -> None:
    assert said in complaint(tmp_path, {section: {key: "nope"}})


def test_a_misspelt_key_of_a_further_task_is_told_with_the_right_one(tmp_path: Path) -> None:
    text = complaint(tmp_path, {"labels": {"further": {"grade": {"clasess": ["low", "high"]}}}})
    assert "unknown key `labels.further.grade.clasess`; did you mean `classes`?" in text


def test_augmentation_is_switched_off_by_one_word(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\noutput: out\nmanifest: m.csv\ntraining: {augment: false}\n", encoding="utf-8")
    off = load_recipe(path).training.augment.model_dump()
    assert set(off) >= {"turns", "hed", "brightness"}
    assert not any(off.values())
    assert load_recipe(path, {"training.augment": True}).training.augment == AugmentSection()


@pytest.mark.parametrize(
    ("slides", "said", "start", "epochs"),
    [
        (28, {}, 125, 145),  # two steps an epoch
        (270, {}, 15, 35),  # 17 steps an epoch
        (5000, {}, 1, 21),
        (28, {"epochs": 30}, 20, 30),
        (270, {"epochs": 60}, 15, 60),
        (28, {"epochs": 1}, 0, 1),
        (28, {"start_steps": 10}, 5, 25),
        (28, {"epochs": 4, "start_steps": 18}, 9, 4),
        (28, {"start": "features"}, 0, 6),  # its steps come before the epochs
        (28, {"start": "none"}, 0, 20),
    ],
)
def test_what_is_left_open_follows_from_the_slides_and_what_is_said_stays(slides, said, start, epochs):
    section = TrainingSection(learning_rate=0.01, augment=False, **said)
    found = planned(section, slides)
    assert (found.start_epochs, found.epochs) == (start, epochs)
    others = {"start_epochs", "epochs"}
    assert found.model_dump(exclude=others) == section.model_dump(exclude=others)


@pytest.mark.parametrize(("memory_size", "batch_slides"), [(16, 4), (256, 8), (4096, 1)])
def test_the_length_of_a_start_on_random_tiles_depends_neither_on_memory_nor_on_slides_of_a_step(
    memory_size, batch_slides
):
    section = planned(TrainingSection(batch_slides=batch_slides), 229)
    start = RandomTiles(Settings(section, ComputeSection(), memory_size, seed=0))
    assert 250 <= start.epochs * start.steps(229) < 250 + start.steps(229)


def test_every_key_is_listed_once_with_default_and_description(tmp_path):
    keys = {key.name: key for key in recipe_keys()}
    assert len(keys) == len(recipe_keys())
    assert all(key.description for key in keys.values())
    assert {name for name, key in keys.items() if key.is_required} == {
        "output",
        "manifest",
        "labels.further.NAME.classes",
    }
    assert keys["tiles.mpp"] == RecipeKey("tiles.mpp", 0.5, False, "scale of the patches, µm/px; never upsampled", ())
    assert keys["tiles.store"].choices == ("zarr", "hdf5")
    assert keys["tiles.exclude_flags"].choices == ("pen", "blur", "fold", "bubble")
    assert keys["model.freeze"].choices == ()  # also takes numbers
    plain = {name: key.default for name, key in keys.items() if "NAME" not in name and not key.is_required}
    loaded = recipe(tmp_path, {})
    for name, default in plain.items():
        value: Any = loaded
        for part in name.split("."):
            value = getattr(value, part, None)
        assert value == default or name.startswith("synth."), name


SHADES = Registry("shade", [Entry("dark", "x:y", "little light"), Entry("bright", "x:y", "much")], group="wsi_ips.none")


class Painting(Section):
    """A section with keys that name registry entries."""

    shade: Annotated[str, ListedIn("shades")] = Field("dark", description="how light it is")
    others: tuple[Annotated[str, ListedIn("shades")], ...] = Field((), description="more of them")


def test_a_registry_gives_a_key_its_choices_and_their_help(monkeypatch):
    monkeypatch.setitem(HOMES, "shades", f"{__name__}:SHADES")
    first, second = recipe_keys(Painting)
    assert first.choices == second.choices == ("dark", "bright")
    assert first.description == "how light it is: `dark`: little light; `bright`: much"
    assert Painting(others=("dark", "bright")).others == ("dark", "bright")
    with pytest.raises(ValidationError, match=r"no shade `drak`; did you mean `dark`\?"):
        Painting(shade="drak")
    with pytest.raises(ValidationError, match=r"no shade `x`; choose one of dark, bright"):
        Painting(others=("x",))


def test_self_supervision_on_stored_features_is_refused(tmp_path: Path) -> None:
    said = complaint(tmp_path, {"model": {"input": "features"}, "training": {"start": "self-supervised"}})
    assert "`training.start: self-supervised` needs pixels; set `model.input: pixels`" in said
