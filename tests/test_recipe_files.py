"""Files of recipes: what YAML makes of them, and that none ends in anything but a recipe or a clear error."""

from __future__ import annotations

import string
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.test_config import LEAST
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.config.keys import recipe_keys
from wsi_ips.errors import RecipeError


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected sections"),
        (b"- a\n", "expected sections"),
        (b"output: [a\n", "not valid YAML"),
        (b"output: !!python/object:os.system a\n", "not valid YAML"),
        (b"output: \xe4\n", "not UTF-8"),
        (b"output: a\nmanifest: b\noutput: c\n", "key `output` appears twice"),
        (b"output: a\ntiles:\n  mpp: 1\n  mpp: 2\n", "key `mpp` appears twice"),
        (b"output: a\nlabels: {classes: !!set {a, b}}\n", "could not determine a constructor"),
        (b"output: a\n? [b]\n: c\n", "unhashable key"),
        (b"output: " + b"[" * 100_000, "nested too deeply"),
        (b"output: " + b"a" * 200_000, "larger than 200,000 bytes"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_numbers_as_yaml_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: a\nmanifest: b\ntraining:\n  learning_rate: 3e-4\n")  # text to YAML 1.1
    assert load_recipe(path).training.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("training: {epochs: true}", "key `training.epochs`: true and false are no numbers; write a number"),
        ("training: {learning_rate: yes}", "key `training.learning_rate`: true and false are no numbers"),
        ("model: {freeze: on}", "key `model.freeze"),
        ("training: {epochs: 1:30}", "key `training.epochs`: .*got '1:30'"),
        ("tiles: {mpp: 1:30.5}", "key `tiles.mpp`: .*got '1:30.5'"),
        ("training: {epochs: " + "9" * 6000 + "}", "key `training.epochs`: .*got '999"),
        ("tiles: {mpp: " + "9" * 6000 + "}", "key `tiles.mpp`: "),
        ("seed: 0x" + "f" * 6000, "key `seed`: "),
        ("training: {epochs: !!int " + "9" * 6000 + "}", "not valid YAML: a value does not fit its tag"),
        ("training: {epochs: 2024-01-01}", "key `training.epochs`: .*got '2024-01-01'"),
        ("labels: {classes: [no, yes]}", "key `labels.classes.0`: Input should be a valid string"),
        ('tiles: {shared: "a\\0b"}', "key `tiles.shared`: a path has no character of code 0"),
        ("tiles: {shared: ~nobody-of-this-name/a}", "key `tiles.shared`: Could not determine home"),
        ("7: a", "key `7`: Keys should be strings"),
        ("".join(f"k{n}: 1\n" for n in range(5000)), "and 4980 more problems"),
        ("x" * 900 + ": 1", "unknown key `x{400} ..."),
    ],
)
def test_what_yaml_would_make_another_value_of_is_told_by_its_key(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"output: a\nmanifest: b\n{line}\n")
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 5000


def test_words_and_numbers_stay_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = "output: a\nmanifest: b\nname: 2024-01-01\nlabels: {classes: [0012, 1:30]}\ntraining: {epochs: 010}\n"
    path.write_text(text + "tiles: {mpp: 1.}\n")
    loaded = load_recipe(path)
    assert (loaded.name, loaded.labels.classes) == ("2024-01-01", ("0012", "1:30"))
    assert (loaded.training.epochs, loaded.tiles.mpp) == (10, 1.0)


@pytest.mark.parametrize("key", ["labels", "strange"])
@pytest.mark.parametrize("kind", ["lists", "merged keys", "itself"])
def test_aliases_that_explode_are_refused_at_once_with_their_key(tmp_path: Path, key: str, kind: str) -> None:
    if kind == "lists":
        lines = [f"  - &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(12)]
    elif kind == "merged keys":
        lines = [f"  a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}' if n else '{x: 1}'] * 9)}]}}" for n in range(12)]
    else:
        lines = ["  classes: &a [*a, *a]"]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(["output: a", "manifest: b", f"{key}:", *lines, ""]))
    began = time.monotonic()
    with pytest.raises(RecipeError, match=f"key `{key}` holds more than 20,000 values"):
        load_recipe(path)
    assert time.monotonic() - began < 10


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["1:30", "010", "9" * 6000, "0x10", "=", "<<", "*a", "~", "!!int", "\0", "~x", "2024-01-01", ".inf"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
KEYS = [key.name.replace("NAME", "grade") for key in recipe_keys()]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*KEYS, *Recipe.model_fields]) | st.text(max_size=8), VALUES, max_size=3))
def test_no_value_of_a_recipe_ends_in_anything_but_a_clear_error(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("output: a\nmanifest: b\n")
    with suppress(RecipeError):
        load_recipe(path, values)
    path.write_text(yaml.safe_dump(LEAST | {key.partition(".")[0]: value for key, value in values.items()}))
    with suppress(RecipeError):
        load_recipe(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=100)
    | st.text(string.ascii_lowercase[:4] + "0123456789:-[]{}&*!|>?#,%@`\"'\n\t .~=<", max_size=100).map(str.encode)
    | st.lists(
        st.sampled_from(["- ", "? ", ": ", "&a ", "*a", "!!int ", "!!float ", "{", "}", "[", "]", "\n", "<<", "a"])
    )
    .map("".join)
    .map(str.encode)
)
@example(b"tiles: {mpp: !!float x}")
@example(b"tiles: {mpp: !!int }")
@example(b"tiles: !!bool x")
@example(b"? ? : 1")
def test_no_file_ends_in_anything_but_a_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    for text in (data, b"output: a\nmanifest: b\n" + data, b"output: a\nmanifest: b\ntraining:\n  epochs: " + data):
        path.write_bytes(text)
        with suppress(RecipeError):
            load_recipe(path)
